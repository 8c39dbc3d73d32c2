// Streaming Sinkhorn-Knopp: one read of the logits per pass. R rows, K prototypes.
#pragma once

#include <cstdint>

namespace webssl::sinkhorn_knopp {

struct Logits {
  Logits(uintptr_t data, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride, double temperature,
         uintptr_t row_mask)
      : data(reinterpret_cast<const void*>(data)),
        bf16(bf16),
        num_rows(num_rows),
        num_prototypes(num_prototypes),
        row_stride(row_stride),
        inverse_temperature(static_cast<float>(1.0 / temperature)),
        row_mask(reinterpret_cast<const bool*>(row_mask)) {}

  const void* data;
  bool bf16;               // otherwise fp32
  int64_t num_rows;        // R
  int64_t num_prototypes;  // K
  int64_t row_stride;      // in elements; prototypes are contiguous
  float inverse_temperature;
  const bool* row_mask;  // false: the row does not take part; null: all do
};

// Per prototype, the sum over rows of exp(logits / temperature), as exp(max_K) * sum_K.
struct ColumnPass {
  Logits logits;
  float* max_K;
  float* sum_K;
};

// Row potentials -log sum_k exp(logits / temperature + prototype_potential), -inf for rows that do not take part, and
// the prototype sums of the normalised rows. Partial sums over fixed blocks of rows are kept apart until the end, so
// that the result does not depend on the number of threads.
struct RowPass {
  Logits logits;
  const float* prototype_potential_K;
  float* row_potential_R;
  float* column_sum_K;    // null: not wanted
  float* partial_sum_PK;  // workspace, P = num_row_partitions(R); null if column_sum_K is
};

int64_t num_row_partitions(int64_t num_rows);

// Entry points: addresses are integers, 0 is null.
void column_pass_cpu(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                     double temperature, uintptr_t row_mask, uintptr_t max_K, uintptr_t sum_K, int num_threads);
void row_pass_cpu(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                  double temperature, uintptr_t row_mask, uintptr_t prototype_potential_K, uintptr_t row_potential_R,
                  uintptr_t column_sum_K, uintptr_t partial_sum_PK, int num_threads);

// The same on the current GPU, on the caller's stream. The workspaces have their own numbers of partitions P.
int64_t num_column_partitions_cuda(int64_t num_rows, int64_t num_prototypes);
void column_pass_cuda(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                      double temperature, uintptr_t row_mask, uintptr_t max_K, uintptr_t sum_K, uintptr_t partial_2PK,
                      uintptr_t stream);

// Whether the row pass with prototype sums can run on clusters, which read the logits once; row_pass_cuda is told. Not
// on GPUs before sm_90, nor for rows that are too short or too long or do not all start at a multiple of 16 bytes.
bool row_pass_on_clusters_cuda(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes,
                               int64_t row_stride, uintptr_t prototype_potential_K);
int64_t num_row_partitions_cuda(int64_t num_rows, int64_t num_prototypes, bool on_clusters);
void row_pass_cuda(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                   double temperature, uintptr_t row_mask, uintptr_t prototype_potential_K, uintptr_t row_potential_R,
                   uintptr_t column_sum_K, uintptr_t partial_sum_PK, bool on_clusters, uintptr_t stream);

}  // namespace webssl::sinkhorn_knopp
