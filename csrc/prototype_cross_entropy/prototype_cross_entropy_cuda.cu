// Portable kernel: a block owns a student row and reads it, and its teacher rows, twice: for the sums, then (mostly
// from the L2 cache) for the gradient.
#include <algorithm>

#include "core/bfloat16.h"
#include "core/launch.cuh"
#include "core/log_sum_exp.h"
#include "core/reduce.cuh"
#include "prototype_cross_entropy/prototype_cross_entropy.h"
#include "prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace webssl::prototype_cross_entropy {
namespace {

constexpr int kThreads = 512;
constexpr unsigned kMaxScaleBlocks = 4096;

template <typename Student, typename Teacher>
struct Params {
  const Student* student_SK;
  const Teacher* teacher_RK;
  int64_t student_stride, teacher_stride;
  const float* row_potential_R;
  const float* prototype_potential_K;
  const int64_t* target_rows_SM;
  const float* weights_SM;
  int64_t num_teachers, num_pairs, num_prototypes;
  float inverse_student_temperature, inverse_teacher_temperature;
  double* loss_S;
  Student* grad_SK;
};

// sum_m w_m p_mk
template <typename Student, typename Teacher>
__device__ float weighted_target(const Params<Student, Teacher>& params, int64_t s, int64_t k, const Exp& exp) {
  float target = 0.0f;
  for (int64_t m = 0; m < params.num_pairs; ++m) {
    const float weight = params.weights_SM[s * params.num_pairs + m];
    if (weight == 0.0f) continue;
    const int64_t row = params.target_rows_SM[s * params.num_pairs + m];
    target += weight * target_probability(load_f32(params.teacher_RK + row * params.teacher_stride + k),
                                          params.inverse_teacher_temperature, params.row_potential_R[row],
                                          params.prototype_potential_K[k], exp);
  }
  return target;
}

template <typename Student, typename Teacher>
__global__ void __launch_bounds__(kThreads) student_row(Params<Student, Teacher> params) {
  __shared__ LogSumExp shared_exponentials[kThreads];
  __shared__ double shared_sums[kThreads];
  const int64_t s = blockIdx.x;
  Student* grad = params.grad_SK ? params.grad_SK + s * params.num_prototypes : nullptr;

  bool any = false, out_of_range = false;
  for (int64_t m = 0; m < params.num_pairs; ++m) {
    if (params.weights_SM[s * params.num_pairs + m] == 0.0f) continue;
    const int64_t row = params.target_rows_SM[s * params.num_pairs + m];
    any = true;
    out_of_range |= row < 0 || row >= params.num_teachers;
  }
  if (!any || out_of_range) {
    // Nothing can be thrown from here: a loss of NaN is what the host can see.
    if (threadIdx.x == 0) params.loss_S[s] = out_of_range ? NAN : 0.0;
    for (int64_t k = threadIdx.x; grad && k < params.num_prototypes; k += kThreads) store_f32(grad + k, 0.0f);
    return;
  }

  const Exp exp;
  const Student* student = params.student_SK + s * params.student_stride;
  const float shift = load_f32(student) * params.inverse_student_temperature;
  LogSumExp exponentials = LogSumExp::empty();
  float mass = 0.0f, product = 0.0f;  // sum_m w_m sum_k p_mk, and of that times y - shift
  for (int64_t k = threadIdx.x; k < params.num_prototypes; k += kThreads) {
    const float y = load_f32(student + k) * params.inverse_student_temperature;
    const float target = weighted_target(params, s, k, exp);
    add(exponentials, y, exp);
    mass += target;
    product += target * (y - shift);
  }
  const auto sum = [](double& a, double b) { a += b; };
  const double total_mass = block_reduce<kThreads>(static_cast<double>(mass), shared_sums, sum);
  const double total_product = block_reduce<kThreads>(static_cast<double>(product), shared_sums, sum);
  exponentials = block_reduce<kThreads>(exponentials, shared_exponentials,
                                        [&](LogSumExp& a, const LogSumExp& b) { merge(a, b, exp); });
  if (threadIdx.x == 0) {
    const double log_sum = static_cast<double>(exponentials.max - shift) + log(static_cast<double>(exponentials.sum));
    params.loss_S[s] = total_mass * log_sum - total_product;
  }
  if (!grad) return;
  const float mass_over_sum = static_cast<float>(total_mass / exponentials.sum);
  for (int64_t k = threadIdx.x; k < params.num_prototypes; k += kThreads) {
    const float y = load_f32(student + k) * params.inverse_student_temperature;
    const float gradient =
        student_gradient(exp(y - exponentials.max), mass_over_sum, weighted_target(params, s, k, exp));
    store_f32(grad + k, params.inverse_student_temperature * gradient);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) scale_elements(T* grad, int64_t num_elements, const float* scale) {
  const float factor = *scale;
  if (factor == 1.0f) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_elements; i += step) {
    store_f32(grad + i, load_f32(grad + i) * factor);
  }
}

}  // namespace

void forward_cuda(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                  bool teacher_bf16, int64_t teacher_stride, uintptr_t row_potential_R, uintptr_t prototype_potential_K,
                  uintptr_t target_rows_SM, uintptr_t weights_SM, int64_t num_students, int64_t num_teachers,
                  int64_t num_pairs, int64_t num_prototypes, double student_temperature, double teacher_temperature,
                  uintptr_t loss_S, uintptr_t grad_SK, uintptr_t stream) {
  if (num_students == 0) return;
  const auto forward = [&](auto student, auto teacher) {
    using Student = decltype(student);
    using Teacher = decltype(teacher);
    const Params<Student, Teacher> params{reinterpret_cast<const Student*>(student_SK),
                                          reinterpret_cast<const Teacher*>(teacher_RK),
                                          student_stride,
                                          teacher_stride,
                                          reinterpret_cast<const float*>(row_potential_R),
                                          reinterpret_cast<const float*>(prototype_potential_K),
                                          reinterpret_cast<const int64_t*>(target_rows_SM),
                                          reinterpret_cast<const float*>(weights_SM),
                                          num_teachers,
                                          num_pairs,
                                          num_prototypes,
                                          static_cast<float>(1.0 / student_temperature),
                                          static_cast<float>(1.0 / teacher_temperature),
                                          reinterpret_cast<double*>(loss_S),
                                          reinterpret_cast<Student*>(grad_SK)};
    launch(student_row<Student, Teacher>, static_cast<unsigned>(num_students), kThreads, 0,
           reinterpret_cast<cudaStream_t>(stream), params);
  };
  if (student_bf16) {
    teacher_bf16 ? forward(Bfloat16(), Bfloat16()) : forward(Bfloat16(), float());
  } else {
    teacher_bf16 ? forward(float(), Bfloat16()) : forward(float(), float());
  }
}

void scale_cuda(uintptr_t grad_SK, bool bf16, int64_t num_elements, uintptr_t scale, uintptr_t stream) {
  if (num_elements == 0) return;
  const auto num_blocks =
      static_cast<unsigned>(std::min<int64_t>((num_elements + kThreads - 1) / kThreads, kMaxScaleBlocks));
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  const auto* factor = reinterpret_cast<const float*>(scale);
  if (bf16) {
    launch(scale_elements<Bfloat16>, num_blocks, kThreads, 0, cuda_stream, reinterpret_cast<Bfloat16*>(grad_SK),
           num_elements, factor);
  } else {
    launch(scale_elements<float>, num_blocks, kThreads, 0, cuda_stream, reinterpret_cast<float*>(grad_SK), num_elements,
           factor);
  }
}

}  // namespace webssl::prototype_cross_entropy
