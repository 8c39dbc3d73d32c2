// Scalar formulas of the prototype cross-entropy, shared by CPU and CUDA.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace webssl::prototype_cross_entropy {

// A Sinkhorn-Knopp (or centred softmax) target, rebuilt from the teacher's logit and the potentials. `exp` is
// core/exp.h's or the GPU's own.
template <typename Exponential>
WEBSSL_HD float target_probability(float teacher_logit, float inverse_temperature, float row_potential,
                                   float prototype_potential, const Exponential& exp) {
  return exp((teacher_logit * inverse_temperature + row_potential) + prototype_potential);
}

// d loss / d student_logit, from loss = sum_m w_m (P_m log sum exp(y) - sum_k p_mk y_k), y = student / temperature:
// mass = sum_m w_m P_m with P_m = sum_k p_mk (1 up to rounding), target = sum_m w_m p_mk, both divided by temperature.
WEBSSL_HD float student_gradient(float exponential, float mass_over_sum, float target) {
  return exponential * mass_over_sum - target;
}

// A part of what a student row sums up to: of exp(y - max), of its targets, and of targets times (y - max).
struct alignas(16) RowSums {
  float max, sum, mass, product;

  WEBSSL_HD static RowSums empty() { return {-3.402823466e38f, 0.0f, 0.0f, 0.0f}; }
};

// The same sums with respect to a larger maximum. (Of nothing, the difference of the maxima may be infinite.)
template <typename Exponential>
WEBSSL_HD RowSums raised(const RowSums& sums, float max, const Exponential& exp) {
  const float difference = sums.max - max;
  return {max, sums.sum * exp(difference), sums.mass,
          sums.product + (sums.mass == 0.0f ? 0.0f : sums.mass * difference)};
}

// mass log(sum exp(y)) - sum target y: the maximum cancels.
WEBSSL_HD double row_loss(const RowSums& sums) {
  return static_cast<double>(sums.mass) * log(static_cast<double>(sums.sum)) - static_cast<double>(sums.product);
}

}  // namespace webssl::prototype_cross_entropy
