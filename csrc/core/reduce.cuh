// Reductions over a thread block in a fixed order, so that results are reproducible.
#pragma once

namespace webssl {

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
