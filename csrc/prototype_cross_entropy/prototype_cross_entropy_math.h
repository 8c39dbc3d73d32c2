// Scalar formulas of the prototype cross-entropy, shared by CPU and CUDA.
#pragma once

#include "core/exp.h"
#include "core/host_device.h"

namespace webssl::prototype_cross_entropy {

// A Sinkhorn-Knopp (or centred softmax) target, rebuilt from the teacher's logit and the potentials.
WEBSSL_HD float target_probability(float teacher_logit, float inverse_temperature, float row_potential,
                                   float prototype_potential, const Exp& exp) {
  return exp((teacher_logit * inverse_temperature + row_potential) + prototype_potential);
}

// d loss / d student_logit, from loss = sum_m w_m (P_m log sum exp(y) - sum_k p_mk y_k), y = student / temperature:
// mass = sum_m w_m P_m with P_m = sum_k p_mk (1 up to rounding), target = sum_m w_m p_mk, both divided by temperature.
WEBSSL_HD float student_gradient(float exponential, float mass_over_sum, float target) {
  return exponential * mass_over_sum - target;
}

}  // namespace webssl::prototype_cross_entropy
