// Portable kernels (mma.sync, ldmatrix, cp.async: sm_80 and up), and the one place where a kernel is chosen.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "attention/attention.h"
#include "attention/attention_backward.cuh"
#include "attention/attention_forward.cuh"

namespace webssl::attention {
namespace {

// Throws for a group that no kernel takes: Python checks as well, but a kernel must never be reached with such sizes.
void check_group(int64_t num_sequences, int64_t length, int64_t num_heads, int64_t head_width) {
  if (length < 1 || length > kMaxLength || (head_width != 64 && head_width != 128) || num_sequences < 0 ||
      num_heads < 1 || 3 * num_heads * head_width > std::numeric_limits<int>::max()) {
    throw std::invalid_argument("attention: " + std::to_string(num_sequences) + " sequences of " +
                                std::to_string(length) + " tokens, " + std::to_string(num_heads) + " heads of width " +
                                std::to_string(head_width) + "; lengths are 1 to " + std::to_string(kMaxLength) +
                                ", head widths 64 or 128");
  }
  if (blocks_along_z(num_sequences) > kMaxBlocksAlongY) {
    throw std::invalid_argument("attention: " + std::to_string(num_sequences) +
                                " sequences are more than a grid holds");
  }
}

dim3 grid_of(int64_t num_sequences, int num_heads, int num_parts) {
  return {static_cast<unsigned>(num_heads * num_parts), static_cast<unsigned>(blocks_along_y(num_sequences)),
          static_cast<unsigned>(blocks_along_z(num_sequences))};
}

template <typename T>
T* at(uintptr_t address, int64_t offset) {
  return reinterpret_cast<T*>(address) + offset;
}

template <int kHeadWidth>
void launch_forward(const ForwardParams& params, cudaStream_t stream) {
  // A Hopper version (wgmma, TMA) would be chosen here, by device_attribute(cudaDevAttrComputeCapabilityMajor).
  launch(forward_kernel<kHeadWidth>, grid_of(params.num_sequences, params.num_heads, 1),
         forward_warps(params.length, kHeadWidth) * 32, forward_shared_bytes(params.length, kHeadWidth), stream,
         params);
}

template <int kHeadWidth, int kColumns>
void launch_backward(const BackwardParams& params, cudaStream_t stream) {
  launch(backward_kernel<kHeadWidth, kColumns>, grid_of(params.num_sequences, params.num_heads, kHeadWidth / kColumns),
         backward_warps(params.length, kColumns) * 32, backward_shared_bytes(params.length, kHeadWidth), stream,
         params);
}

}  // namespace

int64_t longest_sequence(int64_t head_width) {
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 8) return 0;  // neither cp.async nor bf16 products
  const int available = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int d = static_cast<int>(head_width);
  for (int length = kMaxLength; length > 0; --length) {
    if (std::max(forward_shared_bytes(length, d), backward_shared_bytes(length, d)) <= available) return length;
  }
  return 0;
}

void forward_cuda(uintptr_t qkv_T3Hd, int64_t first_token, int64_t num_sequences, int64_t length, int64_t num_tokens,
                  int64_t num_heads, int64_t head_width, uintptr_t out_TD, uintptr_t log_sum_exp_HT, uintptr_t stream) {
  check_group(num_sequences, length, num_heads, head_width);
  const int64_t first = first_token * num_heads * head_width;
  const ForwardParams params{at<const Bfloat16>(qkv_T3Hd, 3 * first),
                             at<Bfloat16>(out_TD, first),
                             at<float>(log_sum_exp_HT, first_token),
                             num_sequences,
                             num_tokens,
                             static_cast<int>(num_heads),
                             static_cast<int>(length),
                             1.0f / std::sqrt(static_cast<float>(head_width))};
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  head_width == 64 ? launch_forward<64>(params, cuda_stream) : launch_forward<128>(params, cuda_stream);
}

void backward_cuda(uintptr_t qkv_T3Hd, uintptr_t log_sum_exp_HT, uintptr_t grad_out_TD, int64_t first_token,
                   int64_t num_sequences, int64_t length, int64_t num_tokens, int64_t num_heads, int64_t head_width,
                   uintptr_t grad_qkv_T3Hd, uintptr_t stream) {
  check_group(num_sequences, length, num_heads, head_width);
  const int64_t first = first_token * num_heads * head_width;
  const BackwardParams params{at<const Bfloat16>(qkv_T3Hd, 3 * first),
                              at<const float>(log_sum_exp_HT, first_token),
                              at<const Bfloat16>(grad_out_TD, first),
                              at<Bfloat16>(grad_qkv_T3Hd, 3 * first),
                              num_sequences,
                              num_tokens,
                              static_cast<int>(num_heads),
                              static_cast<int>(length),
                              1.0f / std::sqrt(static_cast<float>(head_width))};
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  if (head_width == 64) {
    launch_backward<64, 64>(params, cuda_stream);
  } else if (backward_columns(params.length, 128) == 128) {
    launch_backward<128, 128>(params, cuda_stream);
  } else {
    launch_backward<128, 64>(params, cuda_stream);
  }
}

}  // namespace webssl::attention
