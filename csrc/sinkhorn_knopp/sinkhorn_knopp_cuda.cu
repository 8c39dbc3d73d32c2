// A thread owns neighbouring prototypes in passes over columns, a block owns rows in passes over rows. The row pass
// with prototype sums reads the logits once on GPUs with clusters (sinkhorn_knopp_cluster.cuh); elsewhere it goes over
// slabs of rows that stay in the L2 cache between their two reads.
#include <algorithm>

#include "core/bfloat16.h"
#include "core/fast_exp.cuh"
#include "core/launch.cuh"
#include "core/log_sum_exp.h"
#include "core/reduce.cuh"
#include "core/vector.cuh"
#include "sinkhorn_knopp/sinkhorn_knopp.h"
#include "sinkhorn_knopp/sinkhorn_knopp_cluster.cuh"
#include "sinkhorn_knopp/sinkhorn_knopp_math.h"

namespace webssl::sinkhorn_knopp {
namespace {

constexpr int kColumnThreads = 128;
constexpr int kColumnRows = 8;  // rows that a thread of the column pass has under way
constexpr int kRowThreads = 512;
constexpr int64_t kSlabBytes = int64_t{16} << 20;

constexpr int64_t kMaxClusters = 16;  // on the 132 multiprocessors of an H100
constexpr int64_t kMinRowsPerCluster = 4;

template <typename T, int kWidth>
__global__ void __launch_bounds__(kColumnThreads) column_partials(Logits logits, float* max_PK, float* sum_PK) {
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x) * kWidth;
  if (k >= logits.num_prototypes) return;
  float max[kWidth], sum[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    max[i] = LogSumExp::empty().max;
    sum[i] = LogSumExp::empty().sum;
  }
  const RowRange rows = partition_rows({0, logits.num_rows}, blockIdx.y, gridDim.y);
  for (int64_t row = rows.begin; row < rows.end; row += kColumnRows) {
    Packed<T, kWidth> packed[kColumnRows];
    bool active[kColumnRows];
#pragma unroll
    for (int r = 0; r < kColumnRows; ++r) {
      active[r] = row + r < rows.end && takes_part(logits, row + r);
      packed[r].clear();
      if (active[r]) packed[r].load(row_data<T>(logits, row + r) + k);
    }
    float x[kColumnRows][kWidth];
#pragma unroll
    for (int r = 0; r < kColumnRows; ++r) packed[r].widen(x[r]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      // The common maximum of the rows spares the old sum all but one rescaling.
      const float old_max = max[i];
#pragma unroll
      for (int r = 0; r < kColumnRows; ++r) {
        x[r][i] = active[r] ? x[r][i] * logits.inverse_temperature : -INFINITY;
        max[i] = fmaxf(max[i], x[r][i]);
      }
      sum[i] *= fast_exp(old_max - max[i]);
#pragma unroll
      for (int r = 0; r < kColumnRows; ++r) sum[i] += fast_exp(x[r][i] - max[i]);
    }
  }
  const int64_t to = blockIdx.y * logits.num_prototypes + k;
  store_wide(max_PK + to, max);
  store_wide(sum_PK + to, sum);
}

__global__ void __launch_bounds__(kColumnThreads)
    merge_column_partials(const float* max_PK, const float* sum_PK, int64_t num_partitions, int64_t num_prototypes,
                          float* max_K, float* sum_K) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (k >= num_prototypes) return;
  const Exp exp;
  LogSumExp total = LogSumExp::empty();
#pragma unroll 4
  for (int64_t p = 0; p < num_partitions; ++p) {
    merge(total, {max_PK[p * num_prototypes + k], sum_PK[p * num_prototypes + k]}, exp);
  }
  max_K[k] = total.max;
  sum_K[k] = total.sum;
}

// A block owns kRows rows, which share one read of the potentials.
template <typename T, int kWidth, int kRows>
__global__ void __launch_bounds__(kRowThreads)
    row_potentials(Logits logits, const float* prototype_potential_K, RowRange rows, float* row_potential_R) {
  __shared__ LogSumExp shared[kRows][kRowThreads / 32];
  const int64_t first = rows.begin + static_cast<int64_t>(blockIdx.x) * kRows;
  bool active[kRows];
  LogSumExp total[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    active[r] = first + r < rows.end && takes_part(logits, first + r);
    total[r] = LogSumExp::empty();
  }
#pragma unroll 2
  for (int64_t k = threadIdx.x * kWidth; k < logits.num_prototypes; k += kRowThreads * kWidth) {
    Packed<T, kWidth> packed[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      packed[r].clear();
      if (active[r]) packed[r].load(row_data<T>(logits, first + r) + k);
    }
    float potential[kWidth];
    load_wide(prototype_potential_K + k, potential);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[kWidth];
      packed[r].widen(x);
      float max = total[r].max;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[i] = scaled_logit(x[i], logits.inverse_temperature, potential[i]);
        max = fmaxf(max, x[i]);
      }
      total[r].sum *= fast_exp(total[r].max - max);
      total[r].max = max;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) total[r].sum += fast_exp(x[i] - max);
    }
  }
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    total[r] = warp_log_sum_exp(total[r]);
    if (lane == 0) shared[r][warp] = total[r];
  }
  __syncthreads();
  if (warp >= kRows || first + warp >= rows.end) return;
  const LogSumExp row = warp_log_sum_exp(lane < kRowThreads / 32 ? shared[warp][lane] : LogSumExp::empty());
  if (lane == 0)
    row_potential_R[first + warp] = takes_part(logits, first + warp) ? -(row.max + logf(row.sum)) : -INFINITY;
}

// Adds the normalised rows of one slab (the first: writes them) to the sums of their partition.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kColumnThreads)
    add_normalised_rows(Logits logits, const float* prototype_potential_K, const float* row_potential_R, RowRange slab,
                        bool is_first, float* sum_PK) {
  constexpr int kRows = 4;
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x) * kWidth;
  if (k >= logits.num_prototypes) return;
  float potential[kWidth], total[kWidth] = {};
  load_wide(prototype_potential_K + k, potential);
  const RowRange rows = partition_rows(slab, blockIdx.y, gridDim.y);
  for (int64_t row = rows.begin; row < rows.end; row += kRows) {
    Packed<T, kWidth> packed[kRows];
    float row_potential[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool active = row + r < rows.end && takes_part(logits, row + r);
      row_potential[r] = active ? row_potential_R[row + r] : -INFINITY;
      packed[r].clear();
      if (active) packed[r].load(row_data<T>(logits, row + r) + k);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[kWidth];
      packed[r].widen(x);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        total[i] += fast_exp(scaled_logit(x[i], logits.inverse_temperature, potential[i]) + row_potential[r]);
      }
    }
  }
  float* sum = sum_PK + blockIdx.y * logits.num_prototypes + k;
  if (!is_first) {
    float old[kWidth];
    load_wide(sum, old);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) total[i] += old[i];
  }
  store_wide(sum, total);
}

__global__ void __launch_bounds__(kColumnThreads)
    add_partials(const float* sum_PK, int64_t num_partitions, int64_t num_prototypes, float* sum_K) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (k >= num_prototypes) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t p = 0; p < num_partitions; ++p) sum += sum_PK[p * num_prototypes + k];
  sum_K[k] = sum;
}

unsigned column_blocks(int64_t num_prototypes, int width) {
  const int64_t columns = int64_t{kColumnThreads} * width;
  return static_cast<unsigned>((num_prototypes + columns - 1) / columns);
}

// Partitions of the rows that make num_blocks blocks of wide columns, with at least min_rows rows each.
int64_t num_partitions(int64_t num_rows, int64_t num_prototypes, int64_t num_blocks, int64_t min_rows, int64_t most) {
  const int64_t columns = column_blocks(num_prototypes, kWide);
  const int64_t wanted = std::min((num_blocks + columns - 1) / columns, (num_rows + min_rows - 1) / min_rows);
  return std::clamp(wanted, int64_t{1}, most);
}

// fn(T(), std::integral_constant<int, width>()) for the logits' type and the width of their pieces.
template <typename Function>
void for_pieces(const Logits& logits, bool wide, Function fn) {
  const auto for_type = [&](auto type) {
    if (wide) {
      fn(type, std::integral_constant<int, kWide>());
    } else {
      fn(type, std::integral_constant<int, 1>());
    }
  };
  logits.bf16 ? for_type(Bfloat16()) : for_type(float());
}

bool is_wide(const Logits& logits) {
  return rows_are_wide(reinterpret_cast<uintptr_t>(logits.data), logits.bf16 ? sizeof(Bfloat16) : sizeof(float),
                       logits.num_prototypes, logits.row_stride);
}

bool is_wide(const RowPass& pass) {
  return is_wide(pass.logits) && reinterpret_cast<uintptr_t>(pass.prototype_potential_K) % 16 == 0;
}

// fn(kernel, bytes of shared memory) with the instance that holds rows of this length.
template <typename Function>
auto with_cluster_kernel(const Logits& logits, Function fn) {
  const auto with_pieces = [&](auto type) {
    using T = decltype(type);
    switch (pieces_of_thread(logits.num_prototypes)) {
      case 1:
        return fn(row_pass_on_cluster<T, 1>, cluster_shared_bytes<T, 1>());
      case 2:
        return fn(row_pass_on_cluster<T, 2>, cluster_shared_bytes<T, 2>());
      default:
        return fn(row_pass_on_cluster<T, 4>, cluster_shared_bytes<T, 4>());
    }
  };
  return logits.bf16 ? with_pieces(Bfloat16()) : with_pieces(float());
}

int64_t num_clusters(int64_t num_rows) { return std::clamp(num_rows / kMinRowsPerCluster, int64_t{1}, kMaxClusters); }

bool on_clusters(const RowPass& pass) {
  const Logits& logits = pass.logits;
  if (logits.num_prototypes < kMinClusterRow || logits.num_prototypes > kMaxClusterRow || !is_wide(pass)) return false;
  return with_cluster_kernel(logits, [](auto* kernel, size_t bytes) { return runs_on_clusters(kernel, bytes); });
}

void row_pass_over_slabs(const RowPass& pass, int64_t num_partitions, cudaStream_t stream) {
  const Logits& logits = pass.logits;
  for_pieces(logits, is_wide(pass), [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    const int64_t slab_rows = std::max<int64_t>(1, kSlabBytes / (logits.num_prototypes * sizeof(T)));
    const dim3 grid(column_blocks(logits.num_prototypes, kWidth), static_cast<unsigned>(num_partitions));
    for (int64_t begin = 0; begin == 0 || begin < logits.num_rows; begin += slab_rows) {
      const RowRange slab{begin, std::min(begin + slab_rows, logits.num_rows)};
      launch(row_potentials<T, kWidth, 1>, static_cast<unsigned>(slab.end - slab.begin), kRowThreads, 0, stream, logits,
             pass.prototype_potential_K, slab, pass.row_potential_R);
      launch(add_normalised_rows<T, kWidth>, grid, kColumnThreads, 0, stream, logits, pass.prototype_potential_K,
             pass.row_potential_R, slab, begin == 0, pass.partial_sum_PK);
    }
  });
}

// Rows that share one read of the potentials, where there are enough of them to fill a GPU.
void row_pass_without_sums(const RowPass& pass, cudaStream_t stream) {
  constexpr int kTogether = 4;
  constexpr int64_t kEnough = 1024;
  const RowRange rows{0, pass.logits.num_rows};
  for_pieces(pass.logits, is_wide(pass), [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    const bool together = rows.end >= kEnough;
    const int64_t num_blocks = together ? (rows.end + kTogether - 1) / kTogether : rows.end;
    launch(together ? row_potentials<T, kWidth, kTogether> : row_potentials<T, kWidth, 1>,
           static_cast<unsigned>(num_blocks), kRowThreads, 0, stream, pass.logits, pass.prototype_potential_K, rows,
           pass.row_potential_R);
  });
}

}  // namespace

int64_t num_column_partitions_cuda(int64_t num_rows, int64_t num_prototypes) {
  return num_partitions(num_rows, num_prototypes, 2048, 32, 64);
}

void column_pass_cuda(uintptr_t data, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                      double temperature, uintptr_t row_mask, uintptr_t max_K, uintptr_t sum_K, uintptr_t partial_2PK,
                      uintptr_t stream) {
  const Logits logits(data, bf16, num_rows, num_prototypes, row_stride, temperature, row_mask);
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  const int64_t num_partitions = num_column_partitions_cuda(num_rows, num_prototypes);
  auto* max_PK = reinterpret_cast<float*>(partial_2PK);
  float* sum_PK = max_PK + num_partitions * num_prototypes;
  for_pieces(logits, is_wide(logits), [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kWidth = decltype(width)::value;
    launch(column_partials<T, kWidth>,
           dim3(column_blocks(num_prototypes, kWidth), static_cast<unsigned>(num_partitions)), kColumnThreads, 0,
           cuda_stream, logits, max_PK, sum_PK);
  });
  launch(merge_column_partials, column_blocks(num_prototypes, 1), kColumnThreads, 0, cuda_stream, max_PK, sum_PK,
         num_partitions, num_prototypes, reinterpret_cast<float*>(max_K), reinterpret_cast<float*>(sum_K));
}

bool row_pass_on_clusters_cuda(uintptr_t data, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                               uintptr_t prototype_potential_K) {
  const Logits logits(data, bf16, num_rows, num_prototypes, row_stride, 1.0, 0);
  return on_clusters({logits, reinterpret_cast<const float*>(prototype_potential_K), nullptr, nullptr, nullptr});
}

int64_t num_row_partitions_cuda(int64_t num_rows, int64_t num_prototypes, bool on_clusters) {
  return on_clusters ? num_clusters(num_rows) : num_partitions(num_rows, num_prototypes, 512, 16, 32);
}

void row_pass_cuda(uintptr_t data, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                   double temperature, uintptr_t row_mask, uintptr_t prototype_potential_K, uintptr_t row_potential_R,
                   uintptr_t column_sum_K, uintptr_t partial_sum_PK, bool on_clusters, uintptr_t stream) {
  const Logits logits(data, bf16, num_rows, num_prototypes, row_stride, temperature, row_mask);
  const RowPass pass{logits, reinterpret_cast<const float*>(prototype_potential_K),
                     reinterpret_cast<float*>(row_potential_R), reinterpret_cast<float*>(column_sum_K),
                     reinterpret_cast<float*>(partial_sum_PK)};
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  if (!pass.column_sum_K) return row_pass_without_sums(pass, cuda_stream);
  const int64_t num_partitions = num_row_partitions_cuda(num_rows, num_prototypes, on_clusters);
  if (on_clusters) {
    with_cluster_kernel(logits, [&](auto* kernel, size_t shared_bytes) {
      launch_cluster(kernel, kClusterSize, static_cast<unsigned>(num_partitions * kClusterSize), kClusterThreads,
                     shared_bytes, cuda_stream, logits, pass.prototype_potential_K, pass.row_potential_R,
                     pass.partial_sum_PK);
    });
  } else {
    row_pass_over_slabs(pass, num_partitions, cuda_stream);
  }
  launch(add_partials, column_blocks(num_prototypes, 1), kColumnThreads, 0, cuda_stream, pass.partial_sum_PK,
         num_partitions, num_prototypes, pass.column_sum_K);
}

}  // namespace webssl::sinkhorn_knopp
