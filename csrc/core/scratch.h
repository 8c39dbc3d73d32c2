// Working memory of CPU kernels that is too large for the stack and too hot to be allocated per task.
#pragma once

#include <cstdint>
#include <vector>

namespace webssl {

// At least num_floats floats that belong to the calling thread until its next call; contents are not defined.
inline float* thread_scratch(int64_t num_floats) {
  static thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < num_floats) memory.resize(num_floats);
  return memory.data();
}

}  // namespace webssl
