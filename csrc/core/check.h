// Turns a CUDA status into an exception. For CUDA sources only.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "core/build_info.h"

namespace webssl {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::string message = std::string(what) + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice) {
    message += " (built for " + cuda_architectures() + "; rebuild with WEBSSL_CUDA_ARCHITECTURES set to this GPU's)";
  }
  throw std::runtime_error(message);
}

}  // namespace webssl
