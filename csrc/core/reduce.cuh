// Reductions in a fixed order, so that results are reproducible.
#pragma once

#include "core/fast_exp.cuh"
#include "core/log_sum_exp.h"

namespace webssl {

// Over the lanes of a full warp, to all of them: the sum is commutative, so that every lane gets the same bits.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, lanes));
  return value;
}
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

// Maximum first, then sum: one exponential a lane.
__device__ __forceinline__ LogSumExp warp_log_sum_exp(const LogSumExp& value) {
  const float max = warp_max(value.max);
  return {max, warp_sum(value.sum * fast_exp(value.max - max))};
}

// merge(total, other) over the values of all kThreads (a power of two) threads; every thread gets the result. May be
// called again with the same `shared`.
template <int kThreads, typename T, typename Merge>
__device__ T block_reduce(T value, T* shared, Merge merge) {
  static_assert((kThreads & (kThreads - 1)) == 0);
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int stride = kThreads / 2; stride > 0; stride /= 2) {
    if (threadIdx.x < stride) merge(shared[threadIdx.x], shared[threadIdx.x + stride]);
    __syncthreads();
  }
  const T result = shared[0];
  __syncthreads();
  return result;
}

}  // namespace webssl
