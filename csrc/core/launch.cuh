// How kernels are launched, and how they find their dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "core/check.h"

namespace webssl {

// A kernel's dynamic shared memory, aligned to 128 bytes. The same address for every T.
template <typename T>
__device__ T* dynamic_shared() {
#ifdef WEBSSL_CUDA_ON_HOST
  return reinterpret_cast<T*>(cuda_on_host::dynamic_shared_memory());
#else
  extern __shared__ __align__(128) unsigned char webssl_dynamic_shared[];
  return reinterpret_cast<T*>(webssl_dynamic_shared);
#endif
}

// Launches a kernel on `stream` in clusters of `cluster_size` blocks along x (1: none; more need sm_90). An empty grid
// does nothing. Throws std::runtime_error.
template <typename... Parameters, typename... Arguments>
void launch_cluster(void (*kernel)(Parameters...), unsigned cluster_size, dim3 grid, dim3 block, size_t shared_bytes,
                    cudaStream_t stream, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shared_bytes > kAlwaysAllowed) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "asking for shared memory");
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster_size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster_size > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launching a kernel");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  launch_cluster(kernel, 1, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

// A property of the current GPU, e.g. cudaDevAttrComputeCapabilityMajor.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "finding the current GPU");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "asking the GPU for a property");
  return value;
}

// The architecture that a kernel's code was compiled for, e.g. 90. On a newer GPU without code of its own this is the
// older one whose PTX the driver translates, so that it says which instructions the code holds.
template <typename... Parameters>
int code_architecture(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "asking for a kernel's code");
  return attributes.ptxVersion;
}

}  // namespace webssl
