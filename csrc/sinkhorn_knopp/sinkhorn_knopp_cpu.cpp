#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bfloat16.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "sinkhorn_knopp/sinkhorn_knopp.h"
#include "sinkhorn_knopp/sinkhorn_knopp_math.h"

namespace webssl::sinkhorn_knopp {
namespace {

constexpr int64_t kColumnTile = 2048;   // prototypes of one task of the column pass: its sums stay in L1
constexpr int64_t kRowsPerMerge = 64;   // bounds the rounding error of long sums
constexpr int64_t kMaxPartitions = 32;  // of the rows in the row pass
constexpr int64_t kRowBlock = 4;        // rows whose exponentials are held between the two halves of the row pass
constexpr int64_t kChunk = 1024;        // prototypes that share a maximum

template <typename T>
WEBSSL_HD const T* row_data(const Logits& logits, int64_t row) {
  return static_cast<const T*>(logits.data) + row * logits.row_stride;
}

inline bool takes_part(const Logits& logits, int64_t row) { return !logits.row_mask || logits.row_mask[row]; }

template <typename T>
WEBSSL_HD void column_tile(const ColumnPass& pass, int64_t begin, int64_t size) {
  const Logits& logits = pass.logits;
  float max[kColumnTile], sum[kColumnTile];
  float* total_max = pass.max_K + begin;
  float* total_sum = pass.sum_K + begin;
  for (int64_t k = 0; k < size; ++k) {
    total_max[k] = LogSumExp().max;
    total_sum[k] = 0.0f;
  }
  for (int64_t block = 0; block < logits.num_rows; block += kRowsPerMerge) {
    const int64_t block_end = std::min(block + kRowsPerMerge, logits.num_rows);
    for (int64_t k = 0; k < size; ++k) {
      max[k] = LogSumExp().max;
      sum[k] = 0.0f;
    }
    for (int64_t row = block; row < block_end; ++row) {
      if (!takes_part(logits, row)) continue;
      const T* x = row_data<T>(logits, row) + begin;
#pragma omp simd
      for (int64_t k = 0; k < size; ++k) {
        LogSumExp s{max[k], sum[k]};
        add(s, load_f32(x + k) * logits.inverse_temperature);
        max[k] = s.max;
        sum[k] = s.sum;
      }
    }
#pragma omp simd
    for (int64_t k = 0; k < size; ++k) {
      LogSumExp s{total_max[k], total_sum[k]};
      merge(s, {max[k], sum[k]});
      total_max[k] = s.max;
      total_sum[k] = s.sum;
    }
  }
}

WEBSSL_MULTIVERSION void column_tile_f32(const ColumnPass& pass, int64_t begin, int64_t size) {
  column_tile<float>(pass, begin, size);
}
WEBSSL_MULTIVERSION void column_tile_bf16(const ColumnPass& pass, int64_t begin, int64_t size) {
  column_tile<Bfloat16>(pass, begin, size);
}

// exp(scaled logit - maximum of the chunk) into e; returns the maximum and the sum.
template <typename T>
WEBSSL_HD LogSumExp exponentials(const T* logits, const float* prototype_potential, float inverse_temperature,
                                 int64_t size, float* e) {
  LogSumExp result;
  float max = result.max;
#pragma omp simd reduction(max : max)
  for (int64_t k = 0; k < size; ++k) {
    const float x = scaled_logit(load_f32(logits + k), inverse_temperature, prototype_potential[k]);
    e[k] = x;
    max = x > max ? x : max;
  }
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < size; ++k) {
    const float value = exp_f32(e[k] - max);
    e[k] = value;
    sum += value;
  }
  return {max, sum};
}

// Adds the normalised rows of one block to the prototype sums.
WEBSSL_HD void accumulate(const float* e_RK, int64_t num_rows, int64_t num_prototypes, const float* scale_RC,
                          int64_t num_chunks, float* sum_K) {
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, num_prototypes);
    if (num_rows == kRowBlock) {
      static_assert(kRowBlock == 4);
      const float s0 = scale_RC[chunk], s1 = scale_RC[num_chunks + chunk];
      const float s2 = scale_RC[2 * num_chunks + chunk], s3 = scale_RC[3 * num_chunks + chunk];
      const float *e0 = e_RK, *e1 = e0 + num_prototypes, *e2 = e1 + num_prototypes, *e3 = e2 + num_prototypes;
#pragma omp simd
      for (int64_t k = begin; k < end; ++k) sum_K[k] += (e0[k] * s0 + e1[k] * s1) + (e2[k] * s2 + e3[k] * s3);
    } else {
      for (int64_t row = 0; row < num_rows; ++row) {
        const float scale = scale_RC[row * num_chunks + chunk];
        const float* e = e_RK + row * num_prototypes;
#pragma omp simd
        for (int64_t k = begin; k < end; ++k) sum_K[k] += e[k] * scale;
      }
    }
  }
}

template <typename T>
WEBSSL_HD void row_partition(const RowPass& pass, int64_t row_begin, int64_t row_end, float* sum_K) {
  const Logits& logits = pass.logits;
  const int64_t num_prototypes = logits.num_prototypes;
  const int64_t num_chunks = (num_prototypes + kChunk - 1) / kChunk;
  float* e_RK = thread_scratch(kRowBlock * num_prototypes + 2 * kRowBlock * num_chunks);
  float* max_RC = e_RK + kRowBlock * num_prototypes;  // becomes the scales
  float* chunk_sum_RC = max_RC + kRowBlock * num_chunks;
  if (sum_K) memset(sum_K, 0, num_prototypes * sizeof(float));
  int64_t row = row_begin;
  while (row < row_end) {
    int64_t rows[kRowBlock], num_rows = 0;
    for (; row < row_end && num_rows < kRowBlock; ++row) {
      if (takes_part(logits, row)) {
        rows[num_rows++] = row;
      } else {
        pass.row_potential_R[row] = -INFINITY;
      }
    }
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, size = std::min(kChunk, num_prototypes - begin);
      for (int64_t i = 0; i < num_rows; ++i) {
        const LogSumExp s =
            exponentials(row_data<T>(logits, rows[i]) + begin, pass.prototype_potential_K + begin,
                         logits.inverse_temperature, size, e_RK + i * num_prototypes + begin);
        max_RC[i * num_chunks + chunk] = s.max;
        chunk_sum_RC[i * num_chunks + chunk] = s.sum;
      }
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      float* max = max_RC + i * num_chunks;
      const float* chunk_sum = chunk_sum_RC + i * num_chunks;
      const float row_max = *std::max_element(max, max + num_chunks);
      double sum = 0.0;
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        max[chunk] = exp_f32(max[chunk] - row_max);
        sum += static_cast<double>(max[chunk]) * chunk_sum[chunk];
      }
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) max[chunk] = static_cast<float>(max[chunk] / sum);
      pass.row_potential_R[rows[i]] = static_cast<float>(-(row_max + std::log(sum)));
    }
    if (sum_K) accumulate(e_RK, num_rows, num_prototypes, max_RC, num_chunks, sum_K);
  }
}

WEBSSL_MULTIVERSION void row_partition_f32(const RowPass& pass, int64_t begin, int64_t end, float* sum_K) {
  row_partition<float>(pass, begin, end, sum_K);
}
WEBSSL_MULTIVERSION void row_partition_bf16(const RowPass& pass, int64_t begin, int64_t end, float* sum_K) {
  row_partition<Bfloat16>(pass, begin, end, sum_K);
}

}  // namespace

int64_t num_row_partitions(int64_t num_rows) {
  return std::clamp((num_rows + kRowBlock - 1) / kRowBlock, int64_t{1}, kMaxPartitions);
}

void column_pass_cpu(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                     double temperature, uintptr_t row_mask, uintptr_t max_K, uintptr_t sum_K, int num_threads) {
  const ColumnPass pass{{logits, bf16, num_rows, num_prototypes, row_stride, temperature, row_mask},
                        reinterpret_cast<float*>(max_K),
                        reinterpret_cast<float*>(sum_K)};
  parallel_for((num_prototypes + kColumnTile - 1) / kColumnTile, num_threads, [&](int64_t task) {
    const int64_t begin = task * kColumnTile, size = std::min(kColumnTile, num_prototypes - begin);
    (pass.logits.bf16 ? column_tile_bf16 : column_tile_f32)(pass, begin, size);
  });
}

void row_pass_cpu(uintptr_t logits, bool bf16, int64_t num_rows, int64_t num_prototypes, int64_t row_stride,
                  double temperature, uintptr_t row_mask, uintptr_t prototype_potential_K, uintptr_t row_potential_R,
                  uintptr_t column_sum_K, uintptr_t partial_sum_PK, int num_threads) {
  const RowPass pass{{logits, bf16, num_rows, num_prototypes, row_stride, temperature, row_mask},
                     reinterpret_cast<const float*>(prototype_potential_K),
                     reinterpret_cast<float*>(row_potential_R),
                     reinterpret_cast<float*>(column_sum_K),
                     reinterpret_cast<float*>(partial_sum_PK)};
  const int64_t num_partitions = num_row_partitions(num_rows);
  parallel_for(num_partitions, num_threads, [&](int64_t task) {
    const int64_t begin = num_rows * task / num_partitions, end = num_rows * (task + 1) / num_partitions;
    float* sum_K = pass.column_sum_K ? pass.partial_sum_PK + task * num_prototypes : nullptr;
    (pass.logits.bf16 ? row_partition_bf16 : row_partition_f32)(pass, begin, end, sum_K);
  });
  if (!pass.column_sum_K) return;
  parallel_for((num_prototypes + kColumnTile - 1) / kColumnTile, num_threads, [&](int64_t task) {
    const int64_t begin = task * kColumnTile, size = std::min(kColumnTile, num_prototypes - begin);
    for (int64_t k = begin; k < begin + size; ++k) pass.column_sum_K[k] = pass.partial_sum_PK[k];
    for (int64_t p = 1; p < num_partitions; ++p) {
      const float* partial = pass.partial_sum_PK + p * num_prototypes;
      for (int64_t k = begin; k < begin + size; ++k) pass.column_sum_K[k] += partial[k];
    }
  });
}

}  // namespace webssl::sinkhorn_knopp
