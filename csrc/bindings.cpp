// Python's view of the kernel core: one line per function, no logic. Pointers travel as integers.
#include <pybind11/pybind11.h>

#include "core/build_info.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of webssl_fast on raw pointers; use webssl_fast.ops.";
  m.def("cuda_architectures", &webssl::cuda_architectures, "GPU architectures compiled in; empty for a CPU build.");
}
