// Blocks that run side by side and read each other's shared memory (sm_90 and up). Code for older GPUs compiles, and
// traps: the host must not launch it there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace webssl {

// This block's place in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
#if defined(WEBSSL_CUDA_ON_HOST)
  return cuda_on_host::cluster_rank();
#elif __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  __trap();
  return 0;
#endif
}

// Blocks of this cluster.
__device__ __forceinline__ uint32_t cluster_size() {
#if defined(WEBSSL_CUDA_ON_HOST)
  return cuda_on_host::cluster_size();
#elif __CUDA_ARCH__ >= 900
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  __trap();
  return 1;
#endif
}

// A barrier of all threads of the cluster; what they wrote to shared memory is then visible to all of them. A block
// must not exit while another may still read its shared memory.
__device__ __forceinline__ void cluster_sync() {
#if defined(WEBSSL_CUDA_ON_HOST)
  cuda_on_host::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// The same place in the dynamic shared memory of another block of the cluster, for plain loads and stores.
template <typename T>
__device__ __forceinline__ T* cluster_map(T* shared, uint32_t rank) {
#if defined(WEBSSL_CUDA_ON_HOST)
  return static_cast<T*>(cuda_on_host::cluster_map(shared, rank));
#elif __CUDA_ARCH__ >= 900
  uint64_t address;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(reinterpret_cast<uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  __trap();
  return shared;
#endif
}

}  // namespace webssl
