// Python's view of the kernel core: one line per function, no logic. Pointers travel as integers.
#include <pybind11/pybind11.h>

#include "core/build_info.h"
#include "multi_crop/multi_crop.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of webssl_fast on raw pointers; use webssl_fast.ops.";
  m.def("cuda_architectures", &webssl::cuda_architectures, "GPU architectures compiled in; empty for a CPU build.");
  m.def("multi_crop_cpu", &webssl::multi_crop::multi_crop_cpu_at, py::call_guard<py::gil_scoped_release>());
  m.def("draw_crop_parameters", &webssl::multi_crop::draw_crop_parameters_at, py::call_guard<py::gil_scoped_release>());
}
