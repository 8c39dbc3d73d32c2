// Marks functions that CPU and CUDA share.
#pragma once

#if defined(__CUDACC__)
#define WEBSSL_HD __host__ __device__ __forceinline__
#else
#define WEBSSL_HD inline __attribute__((always_inline))
#endif

// A CPU function compiled once for each x86-64 level and chosen at load time, so that one wheel is fast everywhere.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define WEBSSL_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define WEBSSL_MULTIVERSION
#endif
