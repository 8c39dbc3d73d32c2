// Copies from global to shared memory that run beside the thread (cp.async, sm_80 and up).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace webssl {

// Starts a copy of 16 bytes, both sides aligned to 16, past the L1 cache; where !in_bounds, zeros are written and
// `global` is not read.
__device__ __forceinline__ void async_copy_16(void* shared, const void* global, bool in_bounds = true) {
#ifdef WEBSSL_CUDA_ON_HOST
  cuda_on_host::async_copy_16(shared, global, in_bounds);
#else
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(in_bounds ? 16 : 0)
      : "memory");
#endif
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void async_copy_commit() {
#ifdef WEBSSL_CUDA_ON_HOST
  cuda_on_host::async_copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's groups are under way. Other threads' copies need a barrier after it.
template <int kPending>
__device__ __forceinline__ void async_copy_wait() {
#ifdef WEBSSL_CUDA_ON_HOST
  cuda_on_host::async_copy_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace webssl
