// Rows too long for one block, held by a cluster: each block owns a slice of every row, each thread of it its own
// pieces of eight values, so that what a thread copies, keeps and accumulates needs no barrier. Only a row's sums cross
// between threads.
#pragma once

#include <cstdint>

#include "core/async_copy.cuh"
#include "core/cluster.cuh"
#include "core/cluster_mailbox.cuh"
#include "core/launch.cuh"
#include "core/vector.cuh"

namespace webssl {

constexpr int kClusterSize = 8;  // the largest that every sm_90 takes
constexpr int kClusterThreads = 512;
constexpr int kClusterWarps = kClusterThreads / 32;
constexpr int kClusterPartials = kClusterSize * kClusterWarps;  // of a row: one a warp

// Shorter rows are copied sooner than their sums can cross the cluster.
constexpr int64_t kMinClusterRow = 32768;

// Values that a cluster holds of a row at most: 8 blocks x 512 threads x 4 pieces x 8 values.
constexpr int64_t kMaxPieces = 4;
constexpr int64_t kMaxClusterRow = kMaxPieces * kWide * kClusterThreads * kClusterSize;

// Pieces of eight that a thread needs to hold its share of a row: 1, 2 or 4.
inline int pieces_of_thread(int64_t num_values) {
  int pieces = 1;
  while (int64_t{pieces} * kWide * kClusterThreads * kClusterSize < num_values) pieces *= 2;
  return pieces;
}

// Whether the current GPU can run this kernel on clusters of blocks with so much shared memory.
template <typename... Parameters>
bool runs_on_clusters(void (*kernel)(Parameters...), size_t shared_bytes) {
  return code_architecture(kernel) >= 90 &&
         device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= static_cast<int>(shared_bytes);
}

// Which of a row's values this thread owns. The row's length is a multiple of 8, at most kMaxClusterRow.
struct RowShare {
  int first;       // value of the block's slice
  int num_values;  // of the slice

  __device__ __forceinline__ explicit RowShare(int64_t row_length) {
    const int pieces = static_cast<int>(row_length) / kWide;
    const int pieces_of_block = (pieces + kClusterSize - 1) / kClusterSize;
    const int begin = min(pieces, static_cast<int>(cluster_rank()) * pieces_of_block);
    first = begin * kWide;
    num_values = (min(pieces, begin + pieces_of_block) - begin) * kWide;
  }

  // Where a piece starts in the row. Neighbouring threads own neighbouring pieces.
  __device__ __forceinline__ int64_t begin(int piece) const { return int64_t{first + own()} + piece * kDistance; }
  __device__ __forceinline__ bool owns(int piece) const { return own() + piece * kDistance < num_values; }

 private:
  static constexpr int kDistance = kClusterThreads * kWide;
  static __device__ __forceinline__ int own() { return static_cast<int>(threadIdx.x) * kWide; }
};

// A slice of a row in shared memory, with each 16 bytes beside those of the neighbouring threads.
template <typename T, int kPieces>
struct StagedSlice {
  static constexpr int kParts = Packed<T, kWide>::kParts;
  static constexpr size_t kBytes = size_t{kPieces} * kParts * kClusterThreads * sizeof(uint4);
  uint4* memory;

  // Starts copying this thread's pieces; zeros where it owns none, or the row is null.
  __device__ __forceinline__ void copy(const T* row, const RowShare& share) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        async_copy_16(at(piece, part), reinterpret_cast<const uint4*>(row + share.begin(piece)) + part,
                      row != nullptr && share.owns(piece));
      }
    }
  }

  // Overwrites the pieces that this thread does not own, once the copies have landed.
  __device__ __forceinline__ void fill_rest(T value, const RowShare& share) const {
    for (int piece = 0; piece < kPieces; ++piece) {
      for (int part = 0; !share.owns(piece) && part < kParts; ++part) {
        T* values = reinterpret_cast<T*>(at(piece, part));
        for (size_t i = 0; i < sizeof(uint4) / sizeof(T); ++i) values[i] = value;
      }
    }
  }

  __device__ __forceinline__ void read(int piece, float (&values)[kWide]) const {
    Packed<T, kWide> packed;
#pragma unroll
    for (int part = 0; part < kParts; ++part) packed.parts[part] = *at(piece, part);
    packed.widen(values);
  }

 private:
  __device__ __forceinline__ uint4* at(int piece, int part) const {
    return memory + (piece * kParts + part) * kClusterThreads + threadIdx.x;
  }
};

// Hands a partial result of every warp, of 16 bytes, to all threads of the cluster, over and over.
template <typename Partial>
class WarpPartials {
 public:
  static constexpr size_t kBytes = 2 * (kClusterPartials * sizeof(Partial) + sizeof(Mailbox));

  // `memory` lies at the same place in the dynamic shared memory of every block.
  __device__ __forceinline__ explicit WarpPartials(unsigned char* memory)
      : partials_(reinterpret_cast<Partial*>(memory)),
        mailboxes_(reinterpret_cast<Mailbox*>(partials_ + 2 * kClusterPartials)) {
    if (threadIdx.x == 0) {
      mailbox_init(&mailboxes_[0]);
      mailbox_init(&mailboxes_[1]);
    }
    cluster_sync();  // all blocks run, and their mailboxes are ready, before anything is sent to them
  }

  // All kClusterPartials of them in an order that is the same for all threads; valid until the next but one call. Two
  // buffers are enough: whoever sends to one again has received what all warps sent to the other, which they did after
  // reading this one.
  __device__ __forceinline__ const Partial* gather(const Partial& partial) {
    const unsigned buffer = turn_ % 2, lane = threadIdx.x % 32;
    Partial* partials = partials_ + buffer * kClusterPartials;
    Mailbox* mailbox = mailboxes_ + buffer;
    if (threadIdx.x == 0) mailbox_expect(mailbox, kClusterPartials * sizeof(Partial));
    if (lane < kClusterSize) {
      mailbox_send(partials + cluster_rank() * kClusterWarps + threadIdx.x / 32, partial, mailbox, lane);
    }
    mailbox_wait(mailbox, turn_ / 2 % 2);
    ++turn_;
    return partials;
  }

 private:
  Partial* partials_;
  Mailbox* mailboxes_;
  unsigned turn_ = 0;
};

}  // namespace webssl
