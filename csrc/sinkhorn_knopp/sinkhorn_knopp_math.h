// Scalar formulas of streaming Sinkhorn-Knopp, shared by CPU and CUDA.
#pragma once

#include "core/exp.h"
#include "core/host_device.h"

namespace webssl::sinkhorn_knopp {

// log(sum of exp) in running form: the sum is exp(max) * sum.
struct LogSumExp {
  float max = -3.402823466e38f;  // finite, so that the difference of two empty sums is 0 and not NaN
  float sum = 0.0f;
};

// Adds exp(x). One exponential: either x or the old maximum is the new maximum.
WEBSSL_HD void add(LogSumExp& total, float x, const Exp& exp) {
  const float difference = x - total.max;
  const float e = exp(difference > 0.0f ? -difference : difference);
  total.sum = difference > 0.0f ? total.sum * e + 1.0f : total.sum + e;
  total.max = difference > 0.0f ? x : total.max;
}

WEBSSL_HD void merge(LogSumExp& total, LogSumExp other, const Exp& exp) {
  const float max = total.max > other.max ? total.max : other.max;
  total.sum = total.sum * exp(total.max - max) + other.sum * exp(other.max - max);
  total.max = max;
}

// Log of the kernel matrix once the prototypes are scaled.
WEBSSL_HD float scaled_logit(float logit, float inverse_temperature, float prototype_potential) {
  return logit * inverse_temperature + prototype_potential;
}

}  // namespace webssl::sinkhorn_knopp
