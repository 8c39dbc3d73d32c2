// Runs a kernel's threads on the host, and makes what a GPU leaves undefined show.
//
// - Dynamic shared memory starts as NaN, and lies between guards that are checked when its block ends.
// - Asynchronous copies land at the wait for them (or, in other thread orders than "forward", at once).
// - Threads run in the order that WEBSSL_EMULATED_ORDER says: "forward", "backward" or "shuffled". A kernel with a
//   barrier missing gives other bits in another order: in the first two a warp runs ahead of the others until something
//   stops it, in the third they keep in step.
// - A barrier that some threads never reach is an error that says so, not a hang.
// - WEBSSL_EMULATED_CAPABILITY (80, 90) is the GPU that the host code sees.
// Static __shared__ arrays are one array for all blocks: they are not for kernels that run in clusters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_on_host {

struct Launch {
  dim3 grid, block;
  unsigned cluster_size;
  size_t shared_bytes;
};

// Runs `body` once for each thread. Throws std::runtime_error where the launch or the kernel is wrong.
void run(const Launch& launch, const std::function<void()>& body);

int lane();
int capability_major();
void* dynamic_shared_memory();

void block_barrier();
void warp_barrier(unsigned mask);

uint32_t cluster_rank();
uint32_t cluster_size();
void cluster_barrier();
void* cluster_map(void* shared, uint32_t rank);

// What a lane brings to a function of its warp; `apply` runs once, when all lanes of the mask have come.
using WarpFunction = void (*)(unsigned mask, void* const* data_of_lane);
void call_with_warp(unsigned mask, WarpFunction apply, void* data);

template <typename T>
struct Shuffled {
  T value, result;
  int source;
};

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  Shuffled<T> data{value, value, source};
  call_with_warp(
      mask,
      [](unsigned mask, void* const* lanes) {
        for (int i = 0; i < 32; ++i) {
          if (!(mask >> i & 1)) continue;
          auto* data = static_cast<Shuffled<T>*>(lanes[i]);
          if (mask >> data->source & 1) data->result = static_cast<Shuffled<T>*>(lanes[data->source])->value;
        }
      },
      &data);
  return data.result;
}

unsigned ballot(unsigned mask, bool predicate);

// An error where p is not aligned to 16 bytes.
void check_aligned(const void* p, const char* what);

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrices(uint32_t* r, int num_matrices, bool transposed, const void* shared);

void async_copy_16(void* shared, const void* global, bool in_bounds);
void async_copy_commit();
void async_copy_wait(int num_pending);

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace cuda_on_host
