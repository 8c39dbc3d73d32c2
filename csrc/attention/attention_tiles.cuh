// What forward and backward share: tiles of 16 rows between global memory, shared memory and registers. Layouts of
// fragments: core/mma.cuh.
#pragma once

#include "attention/attention_math.h"
#include "core/async_copy.cuh"
#include "core/bfloat16.h"
#include "core/mma.cuh"

namespace webssl::attention {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr float kLog2E = 1.44269504f;

// The same value, which the compiler takes for a new one: what depends on it is computed where it is needed, not ahead
// of the loop around it and then kept, for which there are no registers.
__device__ __forceinline__ int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

__device__ __forceinline__ int lane_index() { return recomputed(static_cast<int>(threadIdx.x)) % 32; }
__device__ __forceinline__ int warp_index() { return recomputed(static_cast<int>(threadIdx.x)) / 32; }
__device__ __forceinline__ int num_threads() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int num_warps() { return static_cast<int>(blockDim.x / 32); }

// The rows of the head that this block works on; it may be one of several blocks, each with its part of the columns.
template <int kHeadWidth, int kParts = 1>
struct HeadRows {
  int64_t first_token;
  int head, num_heads, part;

  __device__ __forceinline__ HeadRows(int length, int num_heads)
      : first_token(sequence_of_block(blockIdx.y, blockIdx.z) * length),
        head(static_cast<int>(blockIdx.x) / kParts),
        num_heads(num_heads),
        part(static_cast<int>(blockIdx.x) % kParts) {}

  // Of queries (0), keys (1) or values (2), from `row` on; and of outputs.
  template <typename T>
  __device__ __forceinline__ T* qkv(T* qkv_T3Hd, int which, int row) const {
    return qkv_T3Hd + qkv_offset(first_token + row, which, head, num_heads, kHeadWidth);
  }
  template <typename T>
  __device__ __forceinline__ T* out(T* out_TD, int row) const {
    return out_TD + out_offset(first_token + row, head, num_heads, kHeadWidth);
  }
  __device__ __forceinline__ int qkv_stride() const { return 3 * num_heads * kHeadWidth; }
  __device__ __forceinline__ int out_stride() const { return num_heads * kHeadWidth; }
};

// Starts copying rows [begin, end) of a head, `stride` elements apart, to the same rows of `shared`; rows from `length`
// on become zeros.
template <int kHeadWidth>
__device__ void copy_rows(Bfloat16* shared, const Bfloat16* global, int stride, int begin, int end, int length) {
  constexpr int kChunks = kHeadWidth / 8;
#pragma unroll 1
  for (int i = recomputed(static_cast<int>(threadIdx.x)); i < (end - begin) * kChunks; i += num_threads()) {
    const int row = begin + i / kChunks, chunk = i % kChunks;
    const bool inside = row < length;
    async_copy_16(shared + chunk_offset<kChunks>(row, chunk), global + (inside ? int64_t{row} * stride + chunk * 8 : 0),
                  inside);
  }
}

// Register j of lane t of a quad and register t of its lane j change places. It turns the four registers of a 16 x 16
// tile's fragment into 16 consecutive bytes (piece_of_lane), and back.
__device__ __forceinline__ void quad_transpose(uint32_t (&r)[4]) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & distance) continue;
      const uint32_t received = __shfl_xor_sync(kWholeWarp, upper ? r[j] : r[j | distance], distance);
      if (upper) {
        r[j] = received;
      } else {
        r[j | distance] = received;
      }
    }
  }
}

// Rows [0, num_rows) of 16 columns in global memory as the fragment a of a product; further rows are zeros.
__device__ __forceinline__ void load_tile(uint32_t (&a)[4], const Bfloat16* global, int stride, int num_rows) {
  const auto [row, chunk] = piece_of_lane(lane_index());
  uint4 piece = make_uint4(0, 0, 0, 0);
  if (row < num_rows) piece = *reinterpret_cast<const uint4*>(global + int64_t{row} * stride + chunk * 8);
  a[0] = piece.x;
  a[1] = piece.y;
  a[2] = piece.z;
  a[3] = piece.w;
  quad_transpose(a);
}

// Writes rows [0, num_rows) of 16 columns, which are the results of two products side by side.
__device__ __forceinline__ void store_tile(Bfloat16* global, int stride, int num_rows, const float (&left)[4],
                                           const float (&right)[4], float scale_upper, float scale_lower) {
  uint32_t r[4] = {packed_bfloat16(left[0] * scale_upper, left[1] * scale_upper),
                   packed_bfloat16(left[2] * scale_lower, left[3] * scale_lower),
                   packed_bfloat16(right[0] * scale_upper, right[1] * scale_upper),
                   packed_bfloat16(right[2] * scale_lower, right[3] * scale_lower)};
  quad_transpose(r);
  const auto [row, chunk] = piece_of_lane(lane_index());
  if (row >= num_rows) return;
  *reinterpret_cast<uint4*>(global + int64_t{row} * stride + chunk * 8) = make_uint4(r[0], r[1], r[2], r[3]);
}

// Results of two products side by side, rounded to the fragment a of the next one.
__device__ __forceinline__ void round_to_fragment(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = packed_bfloat16(left[0], left[1]);
  a[1] = packed_bfloat16(left[2], left[3]);
  a[2] = packed_bfloat16(right[0], right[1]);
  a[3] = packed_bfloat16(right[2], right[3]);
}

// left += a b[:, :8], right += a b[:, 8:], b being the four matrices of a 16 x 16 tile: k first, then columns.
__device__ __forceinline__ void multiply_16x16(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[4]) {
  const uint32_t b_left[2] = {b[0], b[1]}, b_right[2] = {b[2], b[3]};
  mma_m16n8k16_bf16(left, a, b_left);
  mma_m16n8k16_bf16(right, a, b_right);
}

// A 16 x 16 tile of shared memory, from row `row` and chunk `chunk` on, as a fragment. The names say what rows and
// columns of the stored tile mean in the product.
template <int kChunksInRow>
struct SharedTiles {
  const Bfloat16* data;

  __device__ void rows_are_m(uint32_t (&a)[4], int row, int chunk) const { ldmatrix_x4(a, at(rows_first, row, chunk)); }
  __device__ void columns_are_m(uint32_t (&a)[4], int row, int chunk) const {
    ldmatrix_x4_transposed(a, at(chunks_first, row, chunk));
  }
  __device__ void rows_are_n(uint32_t (&b)[4], int row, int chunk) const {
    ldmatrix_x4(b, at(chunks_first, row, chunk));
  }
  __device__ void columns_are_n(uint32_t (&b)[4], int row, int chunk) const {
    ldmatrix_x4_transposed(b, at(rows_first, row, chunk));
  }

 private:
  template <typename Order>
  __device__ const Bfloat16* at(Order order, int row, int chunk) const {
    const RowAndChunk own = order(lane_index());
    // chunk_offset<kChunksInRow>(row + own.row, chunk + own.chunk), since the row is a multiple of 8 and the chunk even
    return data + row * kChunksInRow * 8 + (chunk_offset<kChunksInRow>(own.row, own.chunk) ^ chunk * 8);
  }
};

}  // namespace webssl::attention
