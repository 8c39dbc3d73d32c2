// log(sum of exp) in running form.
#pragma once

#include "core/exp.h"
#include "core/host_device.h"

namespace webssl {

// The sum is exp(max) * sum.
struct LogSumExp {
  float max, sum;

  // Of nothing. Finite, so that the difference of two empty maxima is 0 and not NaN.
  WEBSSL_HD static LogSumExp empty() { return {-3.402823466e38f, 0.0f}; }
};

// Adds exp(x). One exponential: either x or the old maximum is the new maximum.
WEBSSL_HD void add(LogSumExp& total, float x, const Exp& exp) {
  const float difference = x - total.max;
  const float e = exp(difference > 0.0f ? -difference : difference);
  total.sum = difference > 0.0f ? total.sum * e + 1.0f : total.sum + e;
  total.max = difference > 0.0f ? x : total.max;
}

WEBSSL_HD void merge(LogSumExp& total, const LogSumExp& other, const Exp& exp) {
  const float max = total.max > other.max ? total.max : other.max;
  total.sum = total.sum * exp(total.max - max) + other.sum * exp(other.max - max);
  total.max = max;
}

}  // namespace webssl
