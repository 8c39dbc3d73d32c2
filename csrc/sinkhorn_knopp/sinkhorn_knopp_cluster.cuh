// The row pass with one read of the logits: a cluster holds two rows at a time (one of fp32) and the sums of all
// prototypes over its rows. The next rows are copied meanwhile.
#pragma once

#include "core/bfloat16.h"
#include "core/cluster_rows.cuh"
#include "core/fast_exp.cuh"
#include "core/log_sum_exp.h"
#include "core/reduce.cuh"
#include "sinkhorn_knopp/sinkhorn_knopp.h"
#include "sinkhorn_knopp/sinkhorn_knopp_math.h"

namespace webssl::sinkhorn_knopp {

constexpr int kStages = 2;

// Rows whose sums cross the cluster together. As many as shared memory takes: 2 x 2 x 32 KiB of bf16, or 2 x 64 of
// fp32.
template <typename T>
constexpr int kRowsAtOnce = 4 / sizeof(T);

template <int kRows>
struct alignas(16) RowPartials {
  LogSumExp rows[kRows];
};

template <typename T, int kPieces>
constexpr size_t cluster_shared_bytes() {
  return StagedSlice<float, kPieces>::kBytes + kStages * kRowsAtOnce<T> * StagedSlice<T, kPieces>::kBytes +
         WarpPartials<RowPartials<kRowsAtOnce<T>>>::kBytes;
}

// The next row of the range that takes part, or -1; moves `row` behind it.
__device__ __forceinline__ int64_t next_row(const Logits& logits, int64_t& row, int64_t end) {
  while (row < end && !takes_part(logits, row)) ++row;
  return row < end ? row++ : -1;
}

// Log sum exp of a whole row from the partials of its warps.
template <int kRows>
__device__ __forceinline__ LogSumExp row_total(const RowPartials<kRows>* partials, int i) {
  constexpr int kOfLane = kClusterPartials / 32;
  LogSumExp of_lane[kOfLane], total{LogSumExp::empty().max, 0.0f};
#pragma unroll
  for (int j = 0; j < kOfLane; ++j) {
    of_lane[j] = partials[threadIdx.x % 32 + 32 * j].rows[i];
    total.max = fmaxf(total.max, of_lane[j].max);
  }
#pragma unroll
  for (int j = 0; j < kOfLane; ++j) total.sum += of_lane[j].sum * fast_exp(of_lane[j].max - total.max);
  return warp_log_sum_exp(total);
}

// Grid: a cluster for each partition of the rows. K is a multiple of 8, at most kMaxClusterRow; all rows start at a
// multiple of 16 bytes, and so do the potentials.
template <typename T, int kPieces>
__global__ void __launch_bounds__(kClusterThreads, 1)
    row_pass_on_cluster(Logits logits, const float* prototype_potential_K, float* row_potential_R, float* sum_PK) {
  constexpr int kRows = kRowsAtOnce<T>;
  using Slice = StagedSlice<T, kPieces>;
  auto* shared = dynamic_shared<unsigned char>();
  const StagedSlice<float, kPieces> potential{reinterpret_cast<uint4*>(shared)};
  unsigned char* stages = shared + potential.kBytes;
  WarpPartials<RowPartials<kRows>> warp_partials(stages + kStages * kRows * Slice::kBytes);
  const auto slice = [&](int stage, int i) {
    return Slice{reinterpret_cast<uint4*>(stages + (stage * kRows + i) * Slice::kBytes)};
  };

  const RowShare share(logits.num_prototypes);
  const int64_t partition = blockIdx.x / kClusterSize, num_partitions = gridDim.x / kClusterSize;
  const RowRange rows = partition_rows({0, logits.num_rows}, partition, num_partitions);
  if (cluster_rank() == 0) {
    for (int64_t row = rows.begin + threadIdx.x; row < rows.end; row += kClusterThreads) {
      if (!takes_part(logits, row)) row_potential_R[row] = -INFINITY;
    }
  }

  int64_t copied = rows.begin, row = rows.begin;
  const auto next_rows = [&](int64_t& from, int64_t (&next)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) next[i] = next_row(logits, from, rows.end);
  };
  const auto copy_rows = [&](int stage, const int64_t (&next)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      slice(stage, i).copy(next[i] < 0 ? nullptr : row_data<T>(logits, next[i]), share);
    }
    async_copy_commit();
  };
  int64_t at[kRows], next[kRows];
  potential.copy(prototype_potential_K, share);
  async_copy_commit();
  for (int stage = 0; stage < kStages; ++stage) {
    next_rows(copied, next);
    copy_rows(stage, next);
  }
  async_copy_wait<kStages>();
  potential.fill_rest(LogSumExp::empty().max, share);  // what lies beyond the row adds nothing to its sums

  float sum[kPieces][kWide] = {};
  for (int stage = 0;; stage ^= 1) {
    next_rows(row, at);
    if (at[0] < 0) break;
    next_rows(copied, next);  // reads the mask while copies are under way
    async_copy_wait<kStages - 1>();

    // Scaled logits, then their exponentials: the shift is the thread's own maximum, so that nothing overflows and
    // nothing is computed twice. A row that is absent is of zeros here, and is left out below.
    float e[kRows][kPieces][kWide];
    RowPartials<kRows> own;
#pragma unroll
    for (int i = 0; i < kRows; ++i) own.rows[i] = LogSumExp::empty();
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      float potentials[kWide];
      potential.read(piece, potentials);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        slice(stage, i).read(piece, e[i][piece]);
#pragma unroll
        for (int k = 0; k < kWide; ++k) {
          e[i][piece][k] = scaled_logit(e[i][piece][k], logits.inverse_temperature, potentials[k]);
          own.rows[i].max = fmaxf(own.rows[i].max, e[i][piece][k]);
        }
      }
    }
    copy_rows(stage, next);
    RowPartials<kRows> of_warp;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
        for (int k = 0; k < kWide; ++k) {
          e[i][piece][k] = fast_exp(e[i][piece][k] - own.rows[i].max);
          own.rows[i].sum += e[i][piece][k];
        }
      }
      of_warp.rows[i] = warp_log_sum_exp(own.rows[i]);
    }

    const RowPartials<kRows>* of_cluster = warp_partials.gather(of_warp);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const LogSumExp total = row_total(of_cluster, i);
      if (at[i] >= 0 && cluster_rank() == 0 && threadIdx.x == 0) {
        row_potential_R[at[i]] = -(total.max + logf(total.sum));
      }
      const float scale = at[i] < 0 ? 0.0f : fast_exp(own.rows[i].max - total.max) / total.sum;
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
        for (int k = 0; k < kWide; ++k) sum[piece][k] += e[i][piece][k] * scale;
      }
    }
  }
  async_copy_wait<0>();

#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    if (share.owns(piece)) store_wide(sum_PK + partition * logits.num_prototypes + share.begin(piece), sum[piece]);
  }
}

}  // namespace webssl::sinkhorn_knopp
