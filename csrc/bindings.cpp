// Python's view of the kernel core: one line per function, no logic. Pointers travel as integers.
#include <pybind11/pybind11.h>

#include "attention/attention.h"
#include "core/build_info.h"
#include "multi_crop/multi_crop.h"
#include "prototype_cross_entropy/prototype_cross_entropy.h"
#include "sinkhorn_knopp/sinkhorn_knopp.h"

namespace py = pybind11;
using release_gil = py::call_guard<py::gil_scoped_release>;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of webssl_fast on raw pointers; use webssl_fast.ops.";
  m.def("cuda_architectures", &webssl::cuda_architectures, "GPU architectures compiled in; empty for a CPU build.");
  m.def("multi_crop_cpu", &webssl::multi_crop::multi_crop_cpu_at, release_gil());
  m.def("draw_crop_parameters", &webssl::multi_crop::draw_crop_parameters_at, release_gil());
  m.def("sinkhorn_num_row_partitions", &webssl::sinkhorn_knopp::num_row_partitions);
  m.def("sinkhorn_column_pass_cpu", &webssl::sinkhorn_knopp::column_pass_cpu, release_gil());
  m.def("sinkhorn_row_pass_cpu", &webssl::sinkhorn_knopp::row_pass_cpu, release_gil());
  m.def("prototype_cross_entropy_cpu", &webssl::prototype_cross_entropy::forward_cpu, release_gil());
  m.def("prototype_cross_entropy_scale_cpu", &webssl::prototype_cross_entropy::scale_cpu, release_gil());
#ifdef WEBSSL_WITH_CUDA
  m.def("attention_longest_sequence_cuda", &webssl::attention::longest_sequence);
  m.def("attention_cuda", &webssl::attention::forward_cuda, release_gil());
  m.def("attention_backward_cuda", &webssl::attention::backward_cuda, release_gil());
  m.def("multi_crop_workspace_floats_cuda", &webssl::multi_crop::workspace_floats_cuda);
  m.def("multi_crop_cuda", &webssl::multi_crop::multi_crop_cuda, release_gil());
  m.def("sinkhorn_num_column_partitions_cuda", &webssl::sinkhorn_knopp::num_column_partitions_cuda);
  m.def("sinkhorn_num_row_partitions_cuda", &webssl::sinkhorn_knopp::num_row_partitions_cuda);
  m.def("sinkhorn_row_pass_on_clusters_cuda", &webssl::sinkhorn_knopp::row_pass_on_clusters_cuda);
  m.def("sinkhorn_column_pass_cuda", &webssl::sinkhorn_knopp::column_pass_cuda, release_gil());
  m.def("sinkhorn_row_pass_cuda", &webssl::sinkhorn_knopp::row_pass_cuda, release_gil());
  m.def("prototype_cross_entropy_cuda", &webssl::prototype_cross_entropy::forward_cuda, release_gil());
  m.def("prototype_cross_entropy_on_clusters_cuda", &webssl::prototype_cross_entropy::on_clusters_cuda);
  m.def("prototype_cross_entropy_scale_cuda", &webssl::prototype_cross_entropy::scale_cuda, release_gil());
#endif
}
