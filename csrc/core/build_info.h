// What this build contains.
#pragma once

#include <string>

namespace webssl {

inline std::string cuda_architectures() {
#ifdef WEBSSL_WITH_CUDA
  return WEBSSL_CUDA_ARCHITECTURES;
#else
  return "";
#endif
}

}  // namespace webssl
