// Index arithmetic of the attention kernels: how a sequence is cut into tiles of 16 tokens, and where things lie.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace webssl::attention {

constexpr int kTile = 16;        // tokens: the rows of a tensor-core product
constexpr int kMaxLength = 272;  // tokens: 17 tiles, one for each warp of the largest backward block
constexpr int kChunkKeys = 64;   // keys whose scores a forward warp holds at once
constexpr int kMaxForwardWarps = 9;
constexpr int kMaxChunks = (kMaxLength + kChunkKeys - 1) / kChunkKeys;

WEBSSL_HD int num_tiles(int length) { return (length + kTile - 1) / kTile; }
WEBSSL_HD int padded_length(int length) { return num_tiles(length) * kTile; }

// ---------------------------------------------------------------- global memory

// Of the packed tokens: where a head of the queries (part 0), keys (1) or values (2) of a token begins in [T, 3, H, d].
WEBSSL_HD int64_t qkv_offset(int64_t token, int part, int head, int num_heads, int head_width) {
  return ((token * 3 + part) * num_heads + head) * head_width;
}
WEBSSL_HD int64_t out_offset(int64_t token, int head, int num_heads, int head_width) {
  return (token * num_heads + head) * head_width;
}

// What a block works on. Heads go fastest, so that blocks which run together read neighbouring memory.
struct BlockWork {
  int64_t sequence;
  int head, part;  // part: which run of columns of the gradients
};
WEBSSL_HD BlockWork block_work(int block, int num_heads, int num_parts) {
  const int pair = block / num_parts;
  return {pair / num_heads, pair % num_heads, block % num_parts};
}

// ---------------------------------------------------------------- shared memory

// Tiles lie in rows of 16-byte chunks (8 values). Chunks are permuted within their row so that the eight rows of an 8x8
// matrix, read at one chunk, touch all 32 banks.
template <int kChunksInRow>
WEBSSL_HD int chunk_offset(int row, int chunk) {
  static_assert(kChunksInRow == 2 || kChunksInRow % 8 == 0);
  const int permuted = kChunksInRow == 2 ? chunk ^ (row >> 2 & 1) : chunk ^ (row & 7);
  return (row * kChunksInRow + permuted) * 8;
}

// Which row and chunk of a 16 x 16 tile (16 rows of two chunks) a lane names to ldmatrix_x4: the four 8x8 matrices go
// down the rows first, or along the chunks first.
struct RowAndChunk {
  int row, chunk;
};
WEBSSL_HD RowAndChunk rows_first(int lane) { return {lane & 15, lane >> 4}; }
WEBSSL_HD RowAndChunk chunks_first(int lane) { return {(lane & 7) + (lane >> 4) * 8, lane >> 3 & 1}; }

// Which piece of a 16 x 16 tile in global memory a lane reads or writes: 8 values, as after quad_transpose.
WEBSSL_HD RowAndChunk piece_of_lane(int lane) { return {(lane >> 2) + (lane & 1) * 8, lane >> 1 & 1}; }

// ---------------------------------------------------------------- launches

// Warps share the query tiles in as few rounds as kMaxForwardWarps allows, and no more warps than those rounds need.
WEBSSL_HD int forward_warps(int length) {
  const int tiles = num_tiles(length);
  const int rounds = (tiles + kMaxForwardWarps - 1) / kMaxForwardWarps;
  return (tiles + rounds - 1) / rounds;
}

WEBSSL_HD int forward_shared_bytes(int length, int head_width) { return 2 * padded_length(length) * head_width * 2; }

// A warp of the backward keeps dK and dV of 16 keys in registers: at width 128 that is 128 of them. Beyond 9 warps
// there are not so many, and two blocks share the columns of the gradients (each makes the scores anew).
constexpr int kMaxWholeRowsLength = 9 * kTile;
WEBSSL_HD int backward_columns(int length, int head_width) { return length > kMaxWholeRowsLength ? 64 : head_width; }

constexpr WEBSSL_HD int backward_max_rows(int columns) { return columns == 64 ? kMaxLength : kMaxWholeRowsLength; }

// Two stages of 16 rows of Q and dO; dS of 16 queries in bf16, D by warp and the log-sum-exps in fp32, of the longest
// sequence; K and V.
WEBSSL_HD int backward_shared_bytes(int length, int head_width) {
  const int max_rows = backward_max_rows(backward_columns(length, head_width));
  return (4 * kTile + 2 * padded_length(length)) * head_width * 2 + max_rows * (kTile * 2 + 4 + 4);
}

}  // namespace webssl::attention
