// Backward in a single pass over the queries: a block works on one head of one sequence, and each of its warps owns a
// tile of 16 keys, with their dK and dV in registers. For 16 queries at a time, with S = scale q k^T:
//   P = exp(S - log-sum-exp), dP = dO v^T, D = sum over keys of P dP, dS = P (dP - D),
//   dV += P^T dO, dK += scale dS^T q, dq = scale dS k.
// D crosses warps through shared memory, and so does dS, from which some warps make dq over all keys. Every sum has a
// fixed order, so that results are the same bits every time.
#pragma once

#include "attention/attention_tiles.cuh"
#include "core/fast_exp.cuh"
#include "core/launch.cuh"

namespace webssl::attention {

// Pointers are those of the group's first token.
struct BackwardParams {
  const Bfloat16* qkv_T3Hd;
  const float* log_sum_exp_HT;
  const Bfloat16* grad_out_TD;
  Bfloat16* grad_qkv_T3Hd;
  int64_t num_sequences;
  int64_t num_tokens;  // from one head's log-sum-exps to the next's
  int num_heads, length;
  float scale;
};

// Where things lie in the block's shared memory. What the values follow has a fixed size, so that all other addresses
// are constants.
template <int kHeadWidth, int kColumns>
struct BackwardShared {
  static constexpr int kMaxRows = max_backward_tiles(kColumns) * kTile;
  int length;

  // Two stages of 16 queries and the gradients of their outputs.
  __device__ Bfloat16* queries(int tile) const {
    return dynamic_shared<Bfloat16>() + tile % 2 * (2 * kTile * kHeadWidth);
  }
  __device__ Bfloat16* grad_out(int tile) const { return queries(tile) + kTile * kHeadWidth; }
  // dS of 16 queries: a row for each key.
  __device__ Bfloat16* grad_scores() const { return dynamic_shared<Bfloat16>() + 4 * kTile * kHeadWidth; }
  // Sum of P dP over a tile of keys: [tile, query].
  __device__ float* products() const { return reinterpret_cast<float*>(grad_scores() + kMaxRows * kTile); }
  // Of all queries, to base 2.
  __device__ float* log2_sum_exp() const { return products() + kMaxRows; }
  __device__ Bfloat16* keys() const { return reinterpret_cast<Bfloat16*>(log2_sum_exp() + kMaxRows); }
  __device__ Bfloat16* values() const { return keys() + padded_length(length) * kHeadWidth; }
  // Of the tile of keys that no warp owns: its scores, as a warp's lanes hold them.
  __device__ float4* last_scores() const {
    return reinterpret_cast<float4*>(values() + padded_length(length) * kHeadWidth);
  }
};

// Sums over the 16 keys of a tile, which lie in the two halves of a fragment and eight lanes.
__device__ __forceinline__ float sum_over_keys(float upper, float lower) {
  float sum = upper + lower;
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, lanes);
  return sum;
}

// The scores of 16 keys (rows) with 16 queries (columns), and their gradients.
template <int kHeadWidth, typename Shared>
struct ScoreTile {
  float probability[2][4] = {};
  float grad[2][4] = {};  // dP, then dS

  __device__ void compute(const Shared& shared, int key_tile, int query_tile, float scale_log2) {
    using Tiles = SharedTiles<kHeadWidth / 8>;
    const Tiles keys{shared.keys()}, values{shared.values()};
    const Tiles queries{shared.queries(query_tile)}, grad_out{shared.grad_out(query_tile)};
    const int first_key = key_tile * kTile;
#pragma unroll 2
    for (int step = 0; step < kHeadWidth / kTile; ++step) {
      uint32_t a[4], b[4];
      __syncwarp();  // or the compiler loads so much ahead that registers do not suffice
      keys.rows_are_m(a, first_key, 2 * step);
      queries.rows_are_n(b, 0, 2 * step);
      multiply_16x16(probability[0], probability[1], a, b);
      values.rows_are_m(a, first_key, 2 * step);
      grad_out.rows_are_n(b, 0, 2 * step);
      multiply_16x16(grad[0], grad[1], a, b);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool inside = first_key + lane_index() / 4 + i / 2 * 8 < shared.length;
        const float log2_sum_exp = shared.log2_sum_exp()[query_tile * kTile + column(n, i)];
        const float exponent = probability[n][i] * scale_log2 - log2_sum_exp;
        probability[n][i] = inside ? fast_exp2(exponent) : 0.0f;
      }
    }
  }

  // The part of D that comes from these keys, for the other warps.
  __device__ void share_products(const Shared& shared, int key_tile) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float product = sum_over_keys(probability[n][i] * grad[n][i], probability[n][i + 2] * grad[n][i + 2]);
        if (lane_index() < 4) shared.products()[key_tile * kTile + column(n, i)] = product;
      }
    }
  }

  // With D of the queries, each in the lane of its number: dP becomes dS. Both matrices rounded for the next products.
  __device__ void finish(float mean_of_query, uint32_t (&rounded_probability)[4], uint32_t (&rounded_grad)[4]) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float mean = __shfl_sync(kWholeWarp, mean_of_query, column(n, i));
        grad[n][i] = probability[n][i] * (grad[n][i] - mean);
        grad[n][i + 2] = probability[n][i + 2] * (grad[n][i + 2] - mean);
      }
    }
    round_to_fragment(rounded_probability, probability[0], probability[1]);
    round_to_fragment(rounded_grad, grad[0], grad[1]);
  }

  // For a warp that does not make them itself, and by it.
  __device__ void save(float4* shared) const {
    for (int n = 0; n < 2; ++n) {
      shared[(2 * n) * 32 + lane_index()] =
          make_float4(probability[n][0], probability[n][1], probability[n][2], probability[n][3]);
      shared[(2 * n + 1) * 32 + lane_index()] = make_float4(grad[n][0], grad[n][1], grad[n][2], grad[n][3]);
    }
  }
  __device__ void load(const float4* shared) {
    for (int n = 0; n < 2; ++n) {
      const float4 p = shared[(2 * n) * 32 + lane_index()], g = shared[(2 * n + 1) * 32 + lane_index()];
      probability[n][0] = p.x, probability[n][1] = p.y, probability[n][2] = p.z, probability[n][3] = p.w;
      grad[n][0] = g.x, grad[n][1] = g.y, grad[n][2] = g.z, grad[n][3] = g.w;
    }
  }

 private:
  // The query that element i of product n stands for.
  __device__ static int column(int n, int i) { return n * 8 + lane_index() % 4 * 2 + i % 2; }
};

// Keeps a tile's dS, in bf16, as rows of keys.
template <typename Shared>
__device__ void share_grad_scores(const Shared& shared, int key_tile, const uint32_t (&rounded)[4]) {
  const int row = key_tile * kTile + lane_index() / 4;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    auto* const destination = shared.grad_scores() + chunk_offset<2>(row + j % 2 * 8, j / 2) + lane_index() % 4 * 2;
    *reinterpret_cast<uint32_t*>(destination) = rounded[j];
  }
}

// D of the queries of a tile, from the products of all tiles of keys: of query lane % 16. The halves of the warp take
// every second tile each.
template <typename Shared>
__device__ float mean_grad(const Shared& shared, int num_key_tiles) {
  float mean = 0.0f;
#pragma unroll 4
  for (int tile = lane_index() / 16; tile < num_key_tiles; tile += 2) {
    mean += shared.products()[tile * kTile + lane_index() % kTile];
  }
  return mean + __shfl_xor_sync(kWholeWarp, mean, 16);
}

// dq of a tile of queries, columns [16 c, 16 c + 16) for c = this warp, this warp + the number of warps, ...
template <int kHeadWidth, int kColumns, typename Shared>
__device__ void grad_queries(const Shared& shared, Bfloat16* grad_q, int stride, int num_queries, int num_key_tiles,
                             int first_column, float scale) {
  const SharedTiles<kHeadWidth / 8> keys{shared.keys()};
  const SharedTiles<2> grad_scores{shared.grad_scores()};
  for (int c = warp_index(); c < kColumns / kTile; c += num_warps()) {
    float even[2][4] = {}, odd[2][4] = {};  // two chains of products, since each waits for the one before
    const auto add = [&](float (&sum)[2][4], int key_tile) {
      uint32_t a[4], b[4];
      grad_scores.columns_are_m(a, key_tile * kTile, 0);
      keys.columns_are_n(b, key_tile * kTile, first_column / 8 + 2 * c);
      multiply_16x16(sum[0], sum[1], a, b);
    };
#pragma unroll 2
    for (int key_tile = 0; key_tile + 1 < num_key_tiles; key_tile += 2) {
      add(even, key_tile);
      add(odd, key_tile + 1);
    }
    if (num_key_tiles % 2 == 1) add(even, num_key_tiles - 1);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) even[n][i] += odd[n][i];
    }
    store_tile(grad_q + first_column + c * kTile, stride, num_queries, even[0], even[1], scale, scale);
  }
}

// kColumns: how many columns of the gradients a block makes; further blocks make the others.
template <int kHeadWidth, int kColumns>
__global__ void __launch_bounds__(max_backward_warps(kColumns) * 32) backward_kernel(BackwardParams params) {
  constexpr int kSteps = kColumns / kTile;
  using Shared = BackwardShared<kHeadWidth, kColumns>;
  using Rows = HeadRows<kHeadWidth, kHeadWidth / kColumns>;
  using Scores = ScoreTile<kHeadWidth, Shared>;
  if (sequence_of_block(blockIdx.y, blockIdx.z) >= params.num_sequences) return;
  const Shared shared{params.length};
  const int length = params.length, tiles = num_tiles(length);
  const auto copy_queries = [&](int tile) {
    const Rows rows(length, params.num_heads);
    const int first = tile * kTile;
    copy_rows<kHeadWidth>(shared.queries(tile), rows.qkv(params.qkv_T3Hd, 0, first), rows.qkv_stride(), 0, kTile,
                          length - first);
    copy_rows<kHeadWidth>(shared.grad_out(tile), rows.out(params.grad_out_TD, first), rows.out_stride(), 0, kTile,
                          length - first);
    async_copy_commit();
  };
  const auto write_grad_queries = [&](int tile) {
    const Rows rows(length, params.num_heads);
    grad_queries<kHeadWidth, kColumns>(shared, rows.qkv(params.grad_qkv_T3Hd, 0, tile * kTile), rows.qkv_stride(),
                                       min(kTile, length - tile * kTile), tiles, rows.part * kColumns, params.scale);
  };
  {
    const Rows rows(length, params.num_heads);
    copy_rows<kHeadWidth>(shared.keys(), rows.qkv(params.qkv_T3Hd, 1, 0), rows.qkv_stride(), 0, tiles * kTile, length);
    copy_rows<kHeadWidth>(shared.values(), rows.qkv(params.qkv_T3Hd, 2, 0), rows.qkv_stride(), 0, tiles * kTile,
                          length);
    copy_queries(0);
    // Queries beyond the length have probability 0.
    const auto* const log_sum_exp = params.log_sum_exp_HT + rows.head * params.num_tokens + rows.first_token;
    for (int i = static_cast<int>(threadIdx.x); i < tiles * kTile; i += num_threads()) {
      shared.log2_sum_exp()[i] = i < length ? log_sum_exp[i] * kLog2E : INFINITY;
    }
  }

  // A 17th tile of keys has no warp: one makes its scores (not one of the first, which make dq), and the last kSteps
  // make 16 columns each of its dK and dV.
  constexpr bool kMayHaveLastTile = max_backward_tiles(kColumns) > max_backward_warps(kColumns);
  const bool has_last_tile = kMayHaveLastTile && tiles > num_warps();
  const auto scores_last_tile = [&] { return has_last_tile && warp_index() == num_warps() - kSteps - 1; };
  const auto step_of_last_tile = [&] { return has_last_tile ? warp_index() - (num_warps() - kSteps) : -1; };

  float grad_k[2 * kSteps][4] = {}, grad_v[2 * kSteps][4] = {};
  float last_grad_k[2][4] = {}, last_grad_v[2][4] = {};
#pragma unroll 1
  for (int tile = 0;; ++tile) {
    async_copy_wait<0>();
    __syncthreads();  // the tile is there, and so is dS of the last one, whose queries nobody needs any more
    if (tile + 1 < tiles) copy_queries(tile + 1);
    if (tile > 0) write_grad_queries(tile - 1);
    if (tile == tiles) break;
    if (scores_last_tile()) {
      Scores scores;
      scores.compute(shared, num_warps(), tile, params.scale * kLog2E);
      scores.share_products(shared, num_warps());
      scores.save(shared.last_scores());
    }
    Scores scores;
    scores.compute(shared, warp_index(), tile, params.scale * kLog2E);
    scores.share_products(shared, warp_index());
    __syncthreads();  // the products are complete, and dS of the last tile read

    const SharedTiles<kHeadWidth / 8> queries{shared.queries(tile)}, grad_outs{shared.grad_out(tile)};
    const int first_chunk = Rows(length, params.num_heads).part * kColumns / 8;
    const float mean = mean_grad(shared, tiles);
    uint32_t probability[4], grad_score[4], b[4];
    scores.finish(mean, probability, grad_score);
    share_grad_scores(shared, warp_index(), grad_score);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      __syncwarp();  // or the compiler loads so much ahead that registers do not suffice
      grad_outs.columns_are_n(b, 0, first_chunk + 2 * step);
      multiply_16x16(grad_v[2 * step], grad_v[2 * step + 1], probability, b);
      queries.columns_are_n(b, 0, first_chunk + 2 * step);
      multiply_16x16(grad_k[2 * step], grad_k[2 * step + 1], grad_score, b);
    }
    if (step_of_last_tile() < 0) continue;
    scores.load(shared.last_scores());
    scores.finish(mean, probability, grad_score);
    if (step_of_last_tile() == 0) share_grad_scores(shared, num_warps(), grad_score);
    grad_outs.columns_are_n(b, 0, first_chunk + 2 * step_of_last_tile());
    multiply_16x16(last_grad_v[0], last_grad_v[1], probability, b);
    queries.columns_are_n(b, 0, first_chunk + 2 * step_of_last_tile());
    multiply_16x16(last_grad_k[0], last_grad_k[1], grad_score, b);
  }

  const auto write = [&](int which, int key_tile, int step, const float (&left)[4], const float (&right)[4]) {
    const Rows rows(length, params.num_heads);
    auto* const out = rows.qkv(params.grad_qkv_T3Hd, which, key_tile * kTile) + rows.part * kColumns + step * kTile;
    const float scale = which == 1 ? params.scale : 1.0f;
    store_tile(out, rows.qkv_stride(), length - key_tile * kTile, left, right, scale, scale);
  };
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    write(1, warp_index(), step, grad_k[2 * step], grad_k[2 * step + 1]);
    write(2, warp_index(), step, grad_v[2 * step], grad_v[2 * step + 1]);
  }
  if (step_of_last_tile() < 0) return;
  write(1, num_warps(), step_of_last_tile(), last_grad_k[0], last_grad_k[1]);
  write(2, num_warps(), step_of_last_tile(), last_grad_v[0], last_grad_v[1]);
}

}  // namespace webssl::attention
