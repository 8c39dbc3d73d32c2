// Kernels that are right, and kernels that are wrong in ways that the emulation has to notice; see test_emulation.py.
#include <pybind11/pybind11.h>

#include "attention/attention_math.h"
#include "core/async_copy.cuh"
#include "core/cluster.cuh"
#include "core/launch.cuh"
#include "core/mma.cuh"

namespace {

using webssl::dynamic_shared;

// d_16x8 = a_16x16 b_16x8, bf16, with b stored [8, 16] (kTransposedB: [16, 8]).
template <bool kTransposedB>
__global__ void product(const uint16_t* a, const uint16_t* b, float* d) {
  auto* shared_a = dynamic_shared<uint16_t>();
  uint16_t* shared_b = shared_a + 16 * 16;
  const unsigned lane = threadIdx.x;
  webssl::async_copy_16(shared_a + 8 * lane, a + 8 * lane);
  if (lane < 16) webssl::async_copy_16(shared_b + 8 * lane, b + 8 * lane);
  webssl::async_copy_commit();
  webssl::async_copy_wait<0>();
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  webssl::ldmatrix_x4(fragment_a, shared_a + (lane % 16) * 16 + lane / 16 * 8);
  if (kTransposedB) {
    webssl::ldmatrix_x2_transposed(fragment_b, shared_b + (lane % 16) * 8);
  } else {
    webssl::ldmatrix_x2(fragment_b, shared_b + (lane % 8) * 16 + lane % 16 / 8 * 8);
  }
  float sum[4] = {};
  webssl::mma_m16n8k16_bf16(sum, fragment_a, fragment_b);
  for (unsigned i = 0; i < 4; ++i) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

// out[i] = in[i + 1 modulo the block], through shared memory.
template <bool kWithBarrier>
__global__ void rotate(const float* in, float* out) {
  auto* shared = dynamic_shared<float>();
  shared[threadIdx.x] = in[threadIdx.x];
  if (kWithBarrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

// The sum of each warp, to all its lanes.
__global__ void warp_sums(const float* in, float* out) {
  float sum = in[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  out[threadIdx.x] = sum;
}

__global__ void barrier_that_one_thread_skips() {
  if (threadIdx.x != 3) __syncthreads();
  __syncwarp();
}

__global__ void write_beyond_shared_memory() { dynamic_shared<float>()[blockDim.x + threadIdx.x] = 0.0f; }

__global__ void read_before_the_copy_landed(const float* in, float* out) {
  auto* shared = dynamic_shared<float>();
  webssl::async_copy_16(shared + 4 * threadIdx.x, in + 4 * threadIdx.x);
  webssl::async_copy_commit();
  out[threadIdx.x] = shared[4 * threadIdx.x];
}

// out[block] = in of the next block of the cluster.
__global__ void rotate_in_cluster(const float* in, float* out) {
  auto* shared = dynamic_shared<float>();
  shared[0] = in[blockIdx.x];
  webssl::cluster_sync();
  const uint32_t next = (webssl::cluster_rank() + 1) % webssl::cluster_size();
  out[blockIdx.x] = *webssl::cluster_map(shared, next);
  webssl::cluster_sync();
}

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_checks, m) {
  using webssl::launch;
  m.def("product", [](uintptr_t a, uintptr_t b, uintptr_t d, bool transposed_b) {
    launch(transposed_b ? product<true> : product<false>, 1, 32, 768, nullptr, at<uint16_t>(a), at<uint16_t>(b),
           at<float>(d));
  });
  m.def("rotate", [](uintptr_t in, uintptr_t out, unsigned num_threads, bool with_barrier) {
    launch(with_barrier ? rotate<true> : rotate<false>, 1, num_threads, 4 * num_threads, nullptr, at<float>(in),
           at<float>(out));
  });
  m.def("warp_sums", [](uintptr_t in, uintptr_t out, unsigned num_threads) {
    launch(warp_sums, 1, num_threads, 0, nullptr, at<float>(in), at<float>(out));
  });
  m.def("barrier_that_one_thread_skips", [] { launch(barrier_that_one_thread_skips, 1, 64, 0, nullptr); });
  m.def("write_beyond_shared_memory", [] { launch(write_beyond_shared_memory, 1, 32, 128, nullptr); });
  m.def("read_before_the_copy_landed", [](uintptr_t in, uintptr_t out) {
    launch(read_before_the_copy_landed, 1, 32, 512, nullptr, at<float>(in), at<float>(out));
  });
  m.def("attention_chunk_offset", [](int chunks_in_row, int row, int chunk) {
    using webssl::attention::chunk_offset;
    return chunks_in_row == 2   ? chunk_offset<2>(row, chunk)
           : chunks_in_row == 8 ? chunk_offset<8>(row, chunk)
                                : chunk_offset<16>(row, chunk);
  });
  m.def("attention_forward_warps", &webssl::attention::forward_warps);
  m.def("rotate_in_cluster", [](uintptr_t in, uintptr_t out, unsigned num_blocks, unsigned cluster_size) {
    webssl::launch_cluster(rotate_in_cluster, cluster_size, num_blocks, 32, 16, nullptr, at<float>(in), at<float>(out));
  });
}
