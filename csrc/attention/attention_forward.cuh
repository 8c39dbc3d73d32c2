// Forward: a block works on one head of one sequence. Its keys and values lie in shared memory as a whole; each warp
// takes tiles of 16 queries in turn, with scores, softmax and output in registers.
#pragma once

#include "attention/attention_tiles.cuh"
#include "core/fast_exp.cuh"
#include "core/launch.cuh"

namespace webssl::attention {

// Pointers are those of the group's first token.
struct ForwardParams {
  const Bfloat16* qkv_T3Hd;
  Bfloat16* out_TD;
  float* log_sum_exp_HT;
  int64_t num_sequences;
  int64_t num_tokens;  // from one head's log-sum-exps to the next's
  int num_heads, length;
  float scale;
};

__device__ __forceinline__ void wait_for_chunk(int chunk) {
  switch (kMaxChunks - 1 - chunk) {
    case 4:
      return async_copy_wait<4>();
    case 3:
      return async_copy_wait<3>();
    case 2:
      return async_copy_wait<2>();
    case 1:
      return async_copy_wait<1>();
    default:
      return async_copy_wait<0>();
  }
}

// The largest of a row, whose elements lie in the four lanes of a quad; and their sum.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// One tile of queries against one chunk of keys after the other, with the running softmax of Milakov and Gimelshein
// ("Online normalizer calculation for softmax", 2018). Index [0] is of row lane / 4, index [1] of the row 8 below.
template <int kHeadWidth>
struct ForwardTile {
  static constexpr int kSteps = kHeadWidth / kTile;
  static constexpr int kKeyTiles = kChunkKeys / kTile;
  using Tiles = SharedTiles<kHeadWidth / 8>;

  uint32_t queries[kSteps][4];
  float out[2 * kSteps][4] = {};
  float max[2] = {-INFINITY, -INFINITY};  // of the raw scores
  float sum[2] = {};                      // this lane's share

  __device__ void load_queries(const ForwardParams& params, int tile) {
    const HeadRows<kHeadWidth> rows(params.length, params.num_heads);
    const auto* const first = rows.qkv(params.qkv_T3Hd, 0, tile * kTile);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      load_tile(queries[step], first + step * kTile, rows.qkv_stride(), params.length - tile * kTile);
    }
  }

  __device__ void add_chunk(Tiles keys, Tiles values, int first_key, int length, float scale_log2) {
    float scores[2 * kKeyTiles][4] = {};
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      if (first_key + j * kTile >= length) continue;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        keys.rows_are_n(b, first_key + j * kTile, 2 * step);
        multiply_16x16(scores[2 * j], scores[2 * j + 1], queries[step], b);
      }
    }
    if (first_key + kChunkKeys > length) mask(scores, first_key + lane_index() % 4 * 2, length);
    softmax(scores, scale_log2);
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      if (first_key + j * kTile >= length) continue;
      uint32_t probabilities[4];
      round_to_fragment(probabilities, scores[2 * j], scores[2 * j + 1]);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        values.columns_are_n(b, first_key + j * kTile, 2 * step);
        multiply_16x16(out[2 * step], out[2 * step + 1], probabilities, b);
      }
    }
  }

  __device__ void write(const ForwardParams& params, int tile) {
    const HeadRows<kHeadWidth> rows(params.length, params.num_heads);
    const int num_queries = params.length - tile * kTile;
    auto* const first = rows.out(params.out_TD, tile * kTile);
    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      store_tile(first + step * kTile, rows.out_stride(), num_queries, out[2 * step], out[2 * step + 1], 1.0f / sum[0],
                 1.0f / sum[1]);
    }
    auto* const log_sum_exp = params.log_sum_exp_HT + rows.head * params.num_tokens + rows.first_token + tile * kTile;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_index() / 4 + 8 * half;
      if (lane_index() % 4 == 0 && row < num_queries) log_sum_exp[row] = max[half] * params.scale + logf(sum[half]);
    }
  }

 private:
  __device__ static void mask(float (&scores)[2 * kKeyTiles][4], int first_key_of_lane, int length) {
#pragma unroll
    for (int n = 0; n < 2 * kKeyTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first_key_of_lane + n * 8 + i % 2 >= length) scores[n][i] = -INFINITY;
      }
    }
  }

  // Scores to exp(scores - max), and what was summed so far to the new maximum. A chunk holds at least one key, so that
  // the maximum of finite scores is finite.
  __device__ void softmax(float (&scores)[2 * kKeyTiles][4], float scale_log2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = max[half];
#pragma unroll
      for (int n = 0; n < 2 * kKeyTiles; ++n) {
        largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      largest = quad_max(largest);
      const float correction = fast_exp2((max[half] - largest) * scale_log2);
      const float shift = largest * scale_log2;
      max[half] = largest;
      sum[half] *= correction;
#pragma unroll
      for (int n = 0; n < 2 * kKeyTiles; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = fast_exp2(scores[n][i] * scale_log2 - shift);
          sum[half] += scores[n][i];
        }
      }
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        out[n][2 * half] *= correction;
        out[n][2 * half + 1] *= correction;
      }
    }
  }
};

template <int kHeadWidth>
__global__ void __launch_bounds__(max_forward_warps(kHeadWidth) * 32, kHeadWidth == 64 ? 2 : 1)
    forward_kernel(ForwardParams params) {
  if (sequence_of_block(blockIdx.y, blockIdx.z) >= params.num_sequences) return;
  const int length = params.length, end = padded_length(length);
  auto* const keys = dynamic_shared<Bfloat16>();
  auto* const values = keys + end * kHeadWidth;
  {
    const HeadRows<kHeadWidth> rows(length, params.num_heads);
#pragma unroll 1
    for (int chunk = 0; chunk < kMaxChunks; ++chunk) {  // a group of copies each, empty beyond the length
      const int first = chunk * kChunkKeys, last = min(first + kChunkKeys, end);
      copy_rows<kHeadWidth>(keys, rows.qkv(params.qkv_T3Hd, 1, 0), rows.qkv_stride(), first, last, length);
      copy_rows<kHeadWidth>(values, rows.qkv(params.qkv_T3Hd, 2, 0), rows.qkv_stride(), first, last, length);
      async_copy_commit();
    }
  }

  const int tiles = num_tiles(length);
#pragma unroll 1
  for (int round = 0; round * num_warps() < tiles; ++round) {
    if (round * num_warps() + warp_index() >= tiles) break;
    ForwardTile<kHeadWidth> work;
    work.load_queries(params, round * num_warps() + warp_index());
#pragma unroll 1
    for (int chunk = 0; chunk * kChunkKeys < length; ++chunk) {
      if (round == 0) {  // in which every warp has a tile: it goes as fast as the chunks come in
        wait_for_chunk(chunk);
        __syncthreads();
      }
      work.add_chunk({keys}, {values}, chunk * kChunkKeys, length, params.scale * kLog2E);
    }
    work.write(params, round * num_warps() + warp_index());
  }
}

}  // namespace webssl::attention
