// exp through the GPU's own exponential: few instructions, so that kernels stay bound by memory. (core/exp.h is exact
// to fp32's rounding, costs three times as many, and is the same on CPU and GPU.)
#pragma once

#include <cuda_runtime.h>

namespace webssl {

// 2^x, relative error at most 2^-22. 0 below -126, infinite from 128 on; NaN stays NaN.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef WEBSSL_CUDA_ON_HOST
  return exp2f(x);
#else
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
#endif
}

// e^x, relative error at most 2^-22 + |x| 2^-23. 0 below -87.4, infinite above 88.7; NaN stays NaN.
__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * 0x1.715476p+0f); }

}  // namespace webssl
