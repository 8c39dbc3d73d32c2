// Stands in for CUDA's header where the kernels are compiled for the host: every thread of a block (of a cluster) is a
// fiber on one OS thread, and goes on until it meets a barrier or a function of its warp. What a GPU leaves undefined
// is made to show: see emulation.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "emulation.h"

// ---------------------------------------------------------------- the language

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

constexpr int warpSize = 32;

// ---------------------------------------------------------------- types

#define WEBSSL_VECTOR_TYPE(name, scalar, suffix_of_make)               \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };         \
  struct alignas(4 * sizeof(scalar)) name##4 { scalar x, y, z, w; };   \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
WEBSSL_VECTOR_TYPE(float, float, )
WEBSSL_VECTOR_TYPE(int, int, )
WEBSSL_VECTOR_TYPE(uint, unsigned, )
WEBSSL_VECTOR_TYPE(uchar, unsigned char, )
WEBSSL_VECTOR_TYPE(ushort, unsigned short, )
#undef WEBSSL_VECTOR_TYPE

// ---------------------------------------------------------------- scalar functions

inline unsigned __float_as_uint(float x) { return cuda_on_host::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_host::bits_as<float>(x); }
inline int __float_as_int(float x) { return cuda_on_host::bits_as<int>(x); }
inline float __int_as_float(int x) { return cuda_on_host::bits_as<float>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>((uint64_t{x} * y) >> 32); }

template <typename T, typename U>
std::common_type_t<T, U> min(T a, U b) {
  return b < a ? b : a;
}
template <typename T, typename U>
std::common_type_t<T, U> max(T a, U b) {
  return a < b ? b : a;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}

// ---------------------------------------------------------------- atomics, fences: there is one OS thread

template <typename T>
T atomicAdd(T* p, std::common_type_t<T> value) {
  const T old = *p;
  *p = old + value;
  return old;
}
template <typename T>
T atomicMax(T* p, std::common_type_t<T> value) {
  const T old = *p;
  *p = std::max<T>(old, value);
  return old;
}
template <typename T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> value) {
  const T old = *p;
  if (old == expected) *p = value;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------- barriers and functions of a warp

inline void __syncthreads() { cuda_on_host::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_host::warp_barrier(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int lane = cuda_on_host::lane();
  return cuda_on_host::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  const int lane = cuda_on_host::lane(), source = lane ^ lanes;
  return cuda_on_host::shuffle(mask, value, (source | (width - 1)) > (lane | (width - 1)) ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = warpSize) {
  const int lane = cuda_on_host::lane(), source = lane + static_cast<int>(lanes);
  return cuda_on_host::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = warpSize) {
  const int lane = cuda_on_host::lane(), source = lane - static_cast<int>(lanes);
  return cuda_on_host::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return cuda_on_host::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// ---------------------------------------------------------------- the runtime

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorNoKernelImageForDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error of the emulation's"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int major = cuda_on_host::capability_major();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = major >= 9 ? 227 * 1024 : 163 * 1024;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 1024 * 1024;
      break;
  }
  return cudaSuccess;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = cuda_on_host::capability_major() * 10;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= (cuda_on_host::capability_major() >= 9 ? 227 : 163) * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  memset(p, value, bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> parameters(std::forward<Arguments>(arguments)...);
  const unsigned cluster_size = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  cuda_on_host::run({config->gridDim, config->blockDim, cluster_size, config->dynamicSmemBytes},
                    [&] { std::apply(kernel, parameters); });
  return cudaSuccess;
}
