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

}  // namespace webssl
