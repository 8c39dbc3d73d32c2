#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/bfloat16.h"
#include "core/exp.h"
#include "core/log_sum_exp.h"
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
constexpr int64_t kChunk = 1024;        // prototypes that share a shift of their exponents
constexpr float kHeadroom = 40.0f;      // by which a scaled logit may exceed the shift: e^40 * K stays far below 3e38

// Adds four rows at once: their common maximum spares the old sums all but one rescaling.
template <typename T>
WEBSSL_HD void add_four_rows(const T* const* rows, float inverse_temperature, int64_t size, const Exp& exp, float* max,
                             float* sum) {
  const T *row0 = rows[0], *row1 = rows[1], *row2 = rows[2], *row3 = rows[3];
#pragma omp simd simdlen(32)
  for (int64_t k = 0; k < size; ++k) {
    const float x0 = load_f32(row0 + k) * inverse_temperature, x1 = load_f32(row1 + k) * inverse_temperature;
    const float x2 = load_f32(row2 + k) * inverse_temperature, x3 = load_f32(row3 + k) * inverse_temperature;
    const float max01 = x0 > x1 ? x0 : x1, max23 = x2 > x3 ? x2 : x3;
    float new_max = max01 > max23 ? max01 : max23;
    new_max = new_max > max[k] ? new_max : max[k];
    sum[k] = sum[k] * exp(max[k] - new_max) +
             ((exp(x0 - new_max) + exp(x1 - new_max)) + (exp(x2 - new_max) + exp(x3 - new_max)));
    max[k] = new_max;
  }
}

template <typename T>
WEBSSL_HD void column_tile(const ColumnPass& pass, int64_t begin, int64_t size) {
  const Logits& logits = pass.logits;
  const Exp exp;
  float max[kColumnTile], sum[kColumnTile];
  float* total_max = pass.max_K + begin;
  float* total_sum = pass.sum_K + begin;
  std::fill_n(total_max, size, LogSumExp::empty().max);
  std::fill_n(total_sum, size, LogSumExp::empty().sum);
  for (int64_t row = 0; row < logits.num_rows;) {
    const T* rows[kRowsPerMerge];
    int64_t num_rows = 0;
    for (; row < logits.num_rows && num_rows < kRowsPerMerge; ++row) {
      if (takes_part(logits, row)) rows[num_rows++] = row_data<T>(logits, row) + begin;
    }
    std::fill_n(max, size, LogSumExp::empty().max);
    std::fill_n(sum, size, LogSumExp::empty().sum);
    int64_t i = 0;
    for (; i + 4 <= num_rows; i += 4) add_four_rows(rows + i, logits.inverse_temperature, size, exp, max, sum);
    for (; i < num_rows; ++i) {
      const T* x = rows[i];
#pragma omp simd simdlen(32)
      for (int64_t k = 0; k < size; ++k) {
        LogSumExp s{max[k], sum[k]};
        add(s, load_f32(x + k) * logits.inverse_temperature, exp);
        max[k] = s.max;
        sum[k] = s.sum;
      }
    }
#pragma omp simd
    for (int64_t k = 0; k < size; ++k) {
      LogSumExp s{total_max[k], total_sum[k]};
      merge(s, {max[k], sum[k]}, exp);
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

// exp(scaled logit - shift) into e, unless it is null; returns the sum and the maximum of the scaled logits.
template <bool kStore>
WEBSSL_HD LogSumExp exponentials(const float* logits, const float* prototype_potential, float inverse_temperature,
                                 float shift, int64_t size, const Exp& exp, float* e) {
  float max = LogSumExp::empty().max, sum = 0.0f;
#pragma omp simd reduction(max : max) reduction(+ : sum)
  for (int64_t k = 0; k < size; ++k) {
    const float x = scaled_logit(logits[k], inverse_temperature, prototype_potential[k]);
    max = x > max ? x : max;
    const float value = exp(x - shift);
    if (kStore) e[k] = value;
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

template <typename T, bool kWithSums>
WEBSSL_HD void row_partition(const RowPass& pass, int64_t row_begin, int64_t row_end, float* sum_K) {
  const Logits& logits = pass.logits;
  const Exp exp;
  const int64_t num_prototypes = logits.num_prototypes;
  const int64_t num_chunks = (num_prototypes + kChunk - 1) / kChunk;
  float* shift_RC = thread_scratch(2 * kRowBlock * num_chunks + (kWithSums ? kRowBlock * num_prototypes : 0));
  float* chunk_sum_RC = shift_RC + kRowBlock * num_chunks;
  float* e_RK = chunk_sum_RC + kRowBlock * num_chunks;
  if (kWithSums) memset(sum_K, 0, num_prototypes * sizeof(float));
  int64_t row = row_begin;
  while (row < row_end) {
    int64_t rows[kRowBlock], num_rows = 0;
    float shift_R[kRowBlock], buffer[kChunk];
    for (; row < row_end && num_rows < kRowBlock; ++row) {
      if (!takes_part(logits, row)) {
        pass.row_potential_R[row] = -INFINITY;
        continue;
      }
      rows[num_rows] = row;
      shift_R[num_rows++] =
          scaled_logit(load_f32(row_data<T>(logits, row)), logits.inverse_temperature, pass.prototype_potential_K[0]);
    }
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, size = std::min(kChunk, num_prototypes - begin);
      for (int64_t i = 0; i < num_rows; ++i) {
        // The largest logit of a row is not known in advance, and rarely needed: a running shift is raised, and the
        // chunk done again, only where it would overflow.
        const float* x = widened(row_data<T>(logits, rows[i]) + begin, size, buffer);
        LogSumExp s = LogSumExp::empty();
        for (bool again = true; again;) {
          s = exponentials<kWithSums>(x, pass.prototype_potential_K + begin, logits.inverse_temperature, shift_R[i],
                                      size, exp, kWithSums ? e_RK + i * num_prototypes + begin : nullptr);
          again = s.max - shift_R[i] > kHeadroom;
          if (again) shift_R[i] = s.max;
        }
        shift_RC[i * num_chunks + chunk] = shift_R[i];
        chunk_sum_RC[i * num_chunks + chunk] = s.sum;
      }
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      float* scale_C = shift_RC + i * num_chunks;
      const float* chunk_sum_C = chunk_sum_RC + i * num_chunks;
      double sum = 0.0;
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        scale_C[chunk] = exp(scale_C[chunk] - shift_R[i]);
        sum += static_cast<double>(scale_C[chunk]) * chunk_sum_C[chunk];
      }
      const float inverse_sum = static_cast<float>(1.0 / sum);
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) scale_C[chunk] *= inverse_sum;
      pass.row_potential_R[rows[i]] = static_cast<float>(-(shift_R[i] + std::log(sum)));
    }
    if (kWithSums) accumulate(e_RK, num_rows, num_prototypes, shift_RC, num_chunks, sum_K);
  }
}

template <typename T>
WEBSSL_HD void row_partition(const RowPass& pass, int64_t row_begin, int64_t row_end, float* sum_K) {
  if (sum_K) {
    row_partition<T, true>(pass, row_begin, row_end, sum_K);
  } else {
    row_partition<T, false>(pass, row_begin, row_end, nullptr);
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
    const RowRange rows = partition_rows({0, num_rows}, task, num_partitions);
    float* sum_K = pass.column_sum_K ? pass.partial_sum_PK + task * num_prototypes : nullptr;
    (pass.logits.bf16 ? row_partition_bf16 : row_partition_f32)(pass, rows.begin, rows.end, sum_K);
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
