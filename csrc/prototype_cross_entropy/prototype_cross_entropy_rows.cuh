// What the kernels on clusters and on single blocks share: a student row's pairs, and its sums over threads.
#pragma once

#include "core/fast_exp.cuh"
#include "core/reduce.cuh"
#include "prototype_cross_entropy/prototype_cross_entropy.h"
#include "prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace webssl::prototype_cross_entropy {

struct FastExp {
  __device__ __forceinline__ float operator()(float x) const { return fast_exp(x); }
};

// The pairs of one student row.
struct Pairs {
  const int64_t* rows_M;
  const float* weights_M;
  int64_t first;  // of nonzero weight; -1: there is none
  bool in_range;  // all of them have a teacher row

  __device__ __forceinline__ Pairs(const Params& params, int64_t s)
      : rows_M(params.target_rows_SM + s * params.num_pairs),
        weights_M(params.weights_SM + s * params.num_pairs),
        first(-1),
        in_range(true) {
    for (int64_t m = params.num_pairs - 1; m >= 0; --m) {
      if (weights_M[m] == 0.0f) continue;
      first = m;
      in_range &= rows_M[m] >= 0 && rows_M[m] < params.num_teachers;
    }
  }

  __device__ __forceinline__ bool count() const { return first >= 0 && in_range; }

  // Of a row whose pairs do not count. Nothing can be thrown from here: a loss of NaN is what the host can see.
  __device__ __forceinline__ double loss() const { return in_range ? 0.0 : NAN; }
};

template <typename T>
__device__ __forceinline__ const T* student_row(const Params& params, int64_t s) {
  return static_cast<const T*>(params.student_SK) + s * params.student_stride;
}
template <typename T>
__device__ __forceinline__ const T* teacher_row(const Params& params, int64_t row) {
  return static_cast<const T*>(params.teacher_RK) + row * params.teacher_stride;
}
template <typename T>
__device__ __forceinline__ T* gradient_row(const Params& params, int64_t s) {
  return params.grad_SK ? static_cast<T*>(params.grad_SK) + s * params.num_prototypes : nullptr;
}

// The sums of a warp, to all lanes.
__device__ __forceinline__ RowSums warp_row_sums(const RowSums& own) {
  const RowSums sums = raised(own, warp_max(own.max), FastExp());
  return {sums.max, warp_sum(sums.sum), warp_sum(sums.mass), warp_sum(sums.product)};
}

// The sums of kPartials warps, to all lanes of the warp that calls.
template <int kPartials>
__device__ __forceinline__ RowSums total_row_sums(const RowSums* partials) {
  const unsigned lane = threadIdx.x % 32;
  RowSums total = RowSums::empty();
#pragma unroll
  for (int begin = 0; begin < kPartials; begin += 32) {
    if (begin + lane >= kPartials) continue;
    const RowSums other = partials[begin + lane];
    const float max = fmaxf(total.max, other.max);
    const RowSums a = raised(total, max, FastExp()), b = raised(other, max, FastExp());
    total = {max, a.sum + b.sum, a.mass + b.mass, a.product + b.product};
  }
  return warp_row_sums(total);
}

}  // namespace webssl::prototype_cross_entropy
