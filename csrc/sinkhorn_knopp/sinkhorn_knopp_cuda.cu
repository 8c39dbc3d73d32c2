// Portable kernels: a thread owns a prototype in passes over columns, a block owns a row in passes over rows, and
// neighbouring threads read neighbouring prototypes. The row pass reads the logits twice, since a row need not fit on
// chip; sums over rows are split into partitions that depend on R alone.
#include <algorithm>

#include "core/bfloat16.h"
#include "core/launch.cuh"
#include "core/log_sum_exp.h"
#include "core/reduce.cuh"
#include "sinkhorn_knopp/sinkhorn_knopp.h"
#include "sinkhorn_knopp/sinkhorn_knopp_math.h"

namespace webssl::sinkhorn_knopp {
namespace {

constexpr int kColumnThreads = 128;
constexpr int kRowThreads = 512;
constexpr int64_t kMinRowsPerPartition = 64;
constexpr int64_t kMaxPartitions = 64;

struct Partition {
  int64_t begin, end;
};

__device__ Partition partition_rows(int64_t num_rows, int64_t index, int64_t count) {
  return {num_rows * index / count, num_rows * (index + 1) / count};
}

template <typename T>
__device__ float load_logit(const Logits& logits, int64_t row, int64_t k) {
  return load_f32(static_cast<const T*>(logits.data) + row * logits.row_stride + k);
}

__device__ bool takes_part(const Logits& logits, int64_t row) { return !logits.row_mask || logits.row_mask[row]; }

template <typename T>
__global__ void __launch_bounds__(kColumnThreads) column_partials(Logits logits, float* max_PK, float* sum_PK) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (k >= logits.num_prototypes) return;
  const Exp exp;
  LogSumExp total = LogSumExp::empty();
  const Partition rows = partition_rows(logits.num_rows, blockIdx.y, gridDim.y);
#pragma unroll 4
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (takes_part(logits, row)) add(total, load_logit<T>(logits, row, k) * logits.inverse_temperature, exp);
  }
  max_PK[blockIdx.y * logits.num_prototypes + k] = total.max;
  sum_PK[blockIdx.y * logits.num_prototypes + k] = total.sum;
}

__global__ void __launch_bounds__(kColumnThreads)
    merge_column_partials(const float* max_PK, const float* sum_PK, int64_t num_partitions, int64_t num_prototypes,
                          float* max_K, float* sum_K) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (k >= num_prototypes) return;
  const Exp exp;
  LogSumExp total = LogSumExp::empty();
  for (int64_t p = 0; p < num_partitions; ++p) {
    merge(total, {max_PK[p * num_prototypes + k], sum_PK[p * num_prototypes + k]}, exp);
  }
  max_K[k] = total.max;
  sum_K[k] = total.sum;
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    row_potentials(Logits logits, const float* prototype_potential_K, float* row_potential_R) {
  __shared__ LogSumExp shared[kRowThreads];
  const int64_t row = blockIdx.x;
  if (!takes_part(logits, row)) {
    if (threadIdx.x == 0) row_potential_R[row] = -INFINITY;
    return;
  }
  const Exp exp;
  LogSumExp total = LogSumExp::empty();
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < logits.num_prototypes; k += kRowThreads) {
    add(total, scaled_logit(load_logit<T>(logits, row, k), logits.inverse_temperature, prototype_potential_K[k]), exp);
  }
  total = block_reduce<kRowThreads>(total, shared, [&](LogSumExp& a, const LogSumExp& b) { merge(a, b, exp); });
  if (threadIdx.x == 0) row_potential_R[row] = -(total.max + logf(total.sum));
}

template <typename T>
__global__ void __launch_bounds__(kColumnThreads)
    normalised_column_partials(Logits logits, const float* prototype_potential_K, const float* row_potential_R,
                               float* sum_PK) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (k >= logits.num_prototypes) return;
  const Exp exp;
  const float potential = prototype_potential_K[k];
  const Partition rows = partition_rows(logits.num_rows, blockIdx.y, gridDim.y);
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (!takes_part(logits, row)) continue;
    const float x = scaled_logit(load_logit<T>(logits, row, k), logits.inverse_temperature, potential);
    sum += exp(x + row_potential_R[row]);
  }
  sum_PK[blockIdx.y * logits.num_prototypes + k] = sum;
}

__global__ void __launch_bounds__(kColumnThreads)
    add_column_partials(const float* sum_PK, int64_t num_partitions, int64_t num_prototypes, float* sum_K) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (k >= num_prototypes) return;
  float sum = 0.0f;
  for (int64_t p = 0; p < num_partitions; ++p) sum += sum_PK[p * num_prototypes + k];
  sum_K[k] = sum;
}

dim3 column_grid(int64_t num_prototypes, int64_t num_partitions) {
  return dim3(static_cast<unsigned>((num_prototypes + kColumnThreads - 1) / kColumnThreads),
              static_cast<unsigned>(num_partitions));
}

}  // namespace

int64_t num_row_partitions_cuda(int64_t num_rows) {
  return std::clamp(num_rows / kMinRowsPerPartition, int64_t{1}, kMaxPartitions);
}

void column_pass_cuda(uintptr_t data, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                      double temperature, uintptr_t row_mask, uintptr_t max_K, uintptr_t sum_K, uintptr_t partial_2PK,
                      uintptr_t stream) {
  const Logits logits(data, bf16, num_rows, num_prototypes, row_stride, temperature, row_mask);
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  const int64_t num_partitions = num_row_partitions_cuda(num_rows);
  const dim3 grid = column_grid(num_prototypes, num_partitions);
  auto* max_PK = reinterpret_cast<float*>(partial_2PK);
  float* sum_PK = max_PK + num_partitions * num_prototypes;
  if (bf16) {
    launch(column_partials<Bfloat16>, grid, kColumnThreads, 0, cuda_stream, logits, max_PK, sum_PK);
  } else {
    launch(column_partials<float>, grid, kColumnThreads, 0, cuda_stream, logits, max_PK, sum_PK);
  }
  launch(merge_column_partials, grid.x, kColumnThreads, 0, cuda_stream, max_PK, sum_PK, num_partitions, num_prototypes,
         reinterpret_cast<float*>(max_K), reinterpret_cast<float*>(sum_K));
}

void row_pass_cuda(uintptr_t data, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                   double temperature, uintptr_t row_mask, uintptr_t prototype_potential_K, uintptr_t row_potential_R,
                   uintptr_t column_sum_K, uintptr_t partial_sum_PK, uintptr_t stream) {
  const Logits logits(data, bf16, num_rows, num_prototypes, row_stride, temperature, row_mask);
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  const auto* prototype_potential = reinterpret_cast<const float*>(prototype_potential_K);
  auto* row_potential = reinterpret_cast<float*>(row_potential_R);
  auto* partial_sum = reinterpret_cast<float*>(partial_sum_PK);
  {
    const auto row_grid = static_cast<unsigned>(num_rows);
    if (bf16) {
      launch(row_potentials<Bfloat16>, row_grid, kRowThreads, 0, cuda_stream, logits, prototype_potential,
             row_potential);
    } else {
      launch(row_potentials<float>, row_grid, kRowThreads, 0, cuda_stream, logits, prototype_potential, row_potential);
    }
  }
  if (column_sum_K) {
    const int64_t num_partitions = num_row_partitions_cuda(num_rows);
    const dim3 grid = column_grid(num_prototypes, num_partitions);
    if (bf16) {
      launch(normalised_column_partials<Bfloat16>, grid, kColumnThreads, 0, cuda_stream, logits, prototype_potential,
             row_potential, partial_sum);
    } else {
      launch(normalised_column_partials<float>, grid, kColumnThreads, 0, cuda_stream, logits, prototype_potential,
             row_potential, partial_sum);
    }
    launch(add_column_partials, grid.x, kColumnThreads, 0, cuda_stream, partial_sum, num_partitions, num_prototypes,
           reinterpret_cast<float*>(column_sum_K));
  }
}

}  // namespace webssl::sinkhorn_knopp
