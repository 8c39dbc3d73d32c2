// Index arithmetic of the attention kernels: how a sequence is cut into tiles of 16 tokens, and where things lie.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace webssl::attention {

constexpr int kTile = 16;        // tokens: the rows of a tensor-core product
constexpr int kMaxLength = 272;  // tokens: the 16 x 16 patches of 224 pixels, and 16 others
constexpr int kChunkKeys = 64;   // keys whose scores a forward warp holds at once
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

// Blocks: heads (and their parts) along x, so that blocks which run together read neighbouring memory, and sequences
// along y and z, each of which holds 65,535 blocks at most. Some blocks of the last z may have no sequence.
constexpr int64_t kMaxBlocksAlongY = 65535;
WEBSSL_HD int64_t blocks_along_y(int64_t num_sequences) {
  return num_sequences < kMaxBlocksAlongY ? num_sequences : kMaxBlocksAlongY;
}
WEBSSL_HD int64_t blocks_along_z(int64_t num_sequences) {
  return (num_sequences + kMaxBlocksAlongY - 1) / kMaxBlocksAlongY;
}
WEBSSL_HD int64_t sequence_of_block(unsigned y, unsigned z) { return z * kMaxBlocksAlongY + y; }

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

// Of a block: so that a multiprocessor's registers hold two blocks at width 64. At width 128, where shared memory holds
// one of the longest blocks, 17 tiles are two rounds of nine warps.
constexpr WEBSSL_HD int max_forward_warps(int head_width) { return head_width == 64 ? 8 : 9; }

// Warps share the query tiles in as few rounds as max_forward_warps allows, and no more warps than those rounds need.
WEBSSL_HD int forward_warps(int length, int head_width) {
  const int tiles = num_tiles(length), most = max_forward_warps(head_width);
  const int rounds = (tiles + most - 1) / most;
  return (tiles + rounds - 1) / rounds;
}

WEBSSL_HD int forward_shared_bytes(int length, int head_width) { return 2 * padded_length(length) * head_width * 2; }

// A warp of the backward keeps dK and dV of 16 keys in registers: 64 of them at 64 columns, 128 at 128. There is room
// for 16 and for 8 such warps. So longer sequences of width 128 go to two blocks, which share the columns of the
// gradients and each make the scores anew; and dK and dV of a 17th tile of keys are shared out over several warps.
constexpr WEBSSL_HD int max_backward_warps(int columns) { return columns == 64 ? 16 : 8; }
constexpr WEBSSL_HD int max_backward_tiles(int columns) { return columns == 64 ? 17 : 8; }
WEBSSL_HD int backward_columns(int length, int head_width) {
  return num_tiles(length) > max_backward_tiles(head_width) ? 64 : head_width;
}
WEBSSL_HD int backward_warps(int length, int columns) {
  const int tiles = num_tiles(length);
  return tiles < max_backward_warps(columns) ? tiles : max_backward_warps(columns);
}

constexpr int kLaneScores = 16;  // a lane's share of the scores of 16 keys with 16 queries, and of their gradients

// Two stages of 16 rows of Q and dO; of the longest sequence dS of 16 queries in bf16, D by tile of keys and the
// log-sum-exps in fp32; K and V; the scores of the 17th tile in fp32.
WEBSSL_HD int backward_shared_bytes(int length, int head_width) {
  const int columns = backward_columns(length, head_width), max_rows = max_backward_tiles(columns) * kTile;
  const int last_scores = num_tiles(length) > backward_warps(length, columns) ? kLaneScores * 32 * 4 : 0;
  return (4 * kTile + 2 * padded_length(length)) * head_width * 2 + max_rows * (kTile * 2 + 4 + 4) + last_scores;
}

}  // namespace webssl::attention
