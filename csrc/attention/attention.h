// Self-attention of one group of equally long sequences, softmax(q k^T / sqrt(d)) v. T packed tokens, H heads, d head
// width. There is no CPU twin: on a CPU the op is torch's.
#pragma once

#include <cstdint>

namespace webssl::attention {

// The longest sequence that the current GPU's shared memory has room for, of at most 272 tokens; 0 before
// capability 8.0. head_width: 64 or 128.
int64_t longest_sequence(int64_t head_width);

// Entry points: addresses are integers, of the first of all T tokens and aligned to 16 bytes. Only the group's rows are
// read and written. On the current GPU, on the caller's stream; std::invalid_argument for a group that no kernel takes.
// Writes the outputs [T, H d] and, natural, the log-sum-exp of the scaled scores [H, T].
void forward_cuda(uintptr_t qkv_T3Hd, int64_t first_token, int64_t num_sequences, int64_t length, int64_t num_tokens,
                  int64_t num_heads, int64_t head_width, uintptr_t out_TD, uintptr_t log_sum_exp_HT, uintptr_t stream);
// Writes the gradient of qkv [T, 3, H, d]; the same bits every time.
void backward_cuda(uintptr_t qkv_T3Hd, uintptr_t log_sum_exp_HT, uintptr_t grad_out_TD, int64_t first_token,
                   int64_t num_sequences, int64_t length, int64_t num_tokens, int64_t num_heads, int64_t head_width,
                   uintptr_t grad_qkv_T3Hd, uintptr_t stream);

}  // namespace webssl::attention
