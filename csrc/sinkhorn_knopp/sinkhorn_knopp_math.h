// Scalar formulas of streaming Sinkhorn-Knopp, shared by CPU and CUDA.
#pragma once

#include "core/host_device.h"

namespace webssl::sinkhorn_knopp {

// Log of the kernel matrix exp(logits / temperature) once its prototypes are scaled.
WEBSSL_HD float scaled_logit(float logit, float inverse_temperature, float prototype_potential) {
  return logit * inverse_temperature + prototype_potential;
}

}  // namespace webssl::sinkhorn_knopp
