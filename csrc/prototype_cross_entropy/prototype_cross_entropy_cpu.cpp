#include "prototype_cross_entropy/prototype_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/bfloat16.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace webssl::prototype_cross_entropy {
namespace {

constexpr int64_t kChunk = 1024;            // prototypes that share a maximum
constexpr int64_t kScaleTask = int64_t{1} << 18;  // elements

struct Params {
  const void* student_SK;
  const void* teacher_RK;
  int64_t student_stride, teacher_stride;
  const float* row_potential_R;
  const float* prototype_potential_K;
  const int64_t* target_rows_SM;
  const float* weights_SM;
  int64_t num_teachers, num_pairs, num_prototypes;
  float inverse_student_temperature, inverse_teacher_temperature;
  double* loss_S;
  void* grad_SK;
};

// Sums over one chunk, or one row, of one pair: P = sum p, sum p y.
struct PairSums {
  float mass = 0.0f;
  float product = 0.0f;
};

// y and exp(y - max) of one chunk.
struct StudentChunk {
  float max;
  float sum;
};

template <typename T>
WEBSSL_HD StudentChunk student_chunk(const T* student, float inverse_temperature, int64_t size, float* y, float* e) {
  float max = -3.402823466e38f;
#pragma omp simd reduction(max : max)
  for (int64_t k = 0; k < size; ++k) {
    y[k] = load_f32(student + k) * inverse_temperature;
    max = y[k] > max ? y[k] : max;
  }
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < size; ++k) {
    e[k] = exp_f32(y[k] - max);
    sum += e[k];
  }
  return {max, sum};
}

// Products are taken relative to the chunk's maximum of y, so that large logits do not cancel in fp32.
template <bool kFirst, typename T>
WEBSSL_HD PairSums pair_chunk(const T* teacher, float inverse_temperature, float row_potential,
                              const float* prototype_potential, float weight, const float* y, float y_max,
                              int64_t size, float* target) {
  float mass = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : mass, product)
  for (int64_t k = 0; k < size; ++k) {
    const float p = target_probability(load_f32(teacher + k), inverse_temperature, row_potential,
                                       prototype_potential[k]);
    mass += p;
    product += p * (y[k] - y_max);
    target[k] = kFirst ? weight * p : target[k] + weight * p;
  }
  return {mass, product};
}

template <typename Student, typename Teacher>
WEBSSL_HD void student_row(const Params& params, int64_t s) {
  const int64_t num_prototypes = params.num_prototypes, num_pairs = params.num_pairs;
  const float* weights = params.weights_SM + s * num_pairs;
  const int64_t* target_rows = params.target_rows_SM + s * num_pairs;
  Student* grad = params.grad_SK ? static_cast<Student*>(params.grad_SK) + s * num_prototypes : nullptr;

  int64_t num_active = 0;
  for (int64_t m = 0; m < num_pairs; ++m) {
    if (weights[m] == 0.0f) continue;
    if (target_rows[m] < 0 || target_rows[m] >= params.num_teachers) {
      throw std::out_of_range("target_rows_SM[" + std::to_string(s) + ", " + std::to_string(m) + "] is " +
                              std::to_string(target_rows[m]) + ", but there are " +
                              std::to_string(params.num_teachers) + " teacher rows");
    }
    ++num_active;
  }
  if (num_active == 0) {
    params.loss_S[s] = 0.0;
    if (grad) memset(grad, 0, num_prototypes * sizeof(Student));
    return;
  }

  const Student* student = static_cast<const Student*>(params.student_SK) + s * params.student_stride;
  const int64_t num_chunks = (num_prototypes + kChunk - 1) / kChunk;
  float* e_K = thread_scratch(2 * num_prototypes + 2 * num_chunks);
  float* target_K = e_K + num_prototypes;
  float* max_C = target_K + num_prototypes;
  float* sum_C = max_C + num_chunks;
  float y[kChunk];

  // The row's loss: mass * lse - sum_m w_m sum_k p_mk y_k, with sum_k p y = sum over chunks of product + mass * y_max.
  double weighted_mass = 0.0, weighted_product = 0.0;
  float row_max = -3.402823466e38f;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, size = std::min(kChunk, num_prototypes - begin);
    const StudentChunk c =
        student_chunk(student + begin, params.inverse_student_temperature, size, y, e_K + begin);
    max_C[chunk] = c.max;
    sum_C[chunk] = c.sum;
    row_max = std::max(row_max, c.max);
    bool first = true;
    for (int64_t m = 0; m < num_pairs; ++m) {
      const float weight = weights[m];
      if (weight == 0.0f) continue;
      const int64_t row = target_rows[m];
      const Teacher* teacher = static_cast<const Teacher*>(params.teacher_RK) + row * params.teacher_stride + begin;
      const PairSums sums =
          first ? pair_chunk<true>(teacher, params.inverse_teacher_temperature, params.row_potential_R[row],
                                   params.prototype_potential_K + begin, weight, y, c.max, size, target_K + begin)
                : pair_chunk<false>(teacher, params.inverse_teacher_temperature, params.row_potential_R[row],
                                    params.prototype_potential_K + begin, weight, y, c.max, size, target_K + begin);
      first = false;
      weighted_mass += static_cast<double>(weight) * sums.mass;
      weighted_product += static_cast<double>(weight) * (sums.product + static_cast<double>(sums.mass) * c.max);
    }
  }

  double sum = 0.0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    max_C[chunk] = exp_f32(max_C[chunk] - row_max);
    sum += static_cast<double>(max_C[chunk]) * sum_C[chunk];
  }
  params.loss_S[s] = weighted_mass * (row_max + std::log(sum)) - weighted_product;
  if (!grad) return;
  const float inverse_temperature = params.inverse_student_temperature;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, num_prototypes);
    const float mass_over_sum = static_cast<float>(weighted_mass * max_C[chunk] / sum);
#pragma omp simd
    for (int64_t k = begin; k < end; ++k) {
      store_f32(grad + k, inverse_temperature * student_gradient(e_K[k], mass_over_sum, target_K[k]));
    }
  }
}

WEBSSL_MULTIVERSION void student_row_f32_f32(const Params& params, int64_t s) { student_row<float, float>(params, s); }
WEBSSL_MULTIVERSION void student_row_f32_bf16(const Params& params, int64_t s) {
  student_row<float, Bfloat16>(params, s);
}
WEBSSL_MULTIVERSION void student_row_bf16_f32(const Params& params, int64_t s) {
  student_row<Bfloat16, float>(params, s);
}
WEBSSL_MULTIVERSION void student_row_bf16_bf16(const Params& params, int64_t s) {
  student_row<Bfloat16, Bfloat16>(params, s);
}

template <typename T>
WEBSSL_HD void scale_range(T* grad, int64_t size, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) store_f32(grad + i, load_f32(grad + i) * scale);
}

WEBSSL_MULTIVERSION void scale_range_f32(float* grad, int64_t size, float scale) { scale_range(grad, size, scale); }
WEBSSL_MULTIVERSION void scale_range_bf16(Bfloat16* grad, int64_t size, float scale) { scale_range(grad, size, scale); }

}  // namespace

void forward_cpu(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                 bool teacher_bf16, int64_t teacher_stride, uintptr_t row_potential_R, uintptr_t prototype_potential_K,
                 uintptr_t target_rows_SM, uintptr_t weights_SM, int64_t num_students, int64_t num_teachers,
                 int64_t num_pairs, int64_t num_prototypes, double student_temperature, double teacher_temperature,
                 uintptr_t loss_S, uintptr_t grad_SK, int num_threads) {
  const Params params{reinterpret_cast<const void*>(student_SK),
                      reinterpret_cast<const void*>(teacher_RK),
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
                      reinterpret_cast<void*>(grad_SK)};
  const auto row = student_bf16 ? (teacher_bf16 ? student_row_bf16_bf16 : student_row_bf16_f32)
                                : (teacher_bf16 ? student_row_f32_bf16 : student_row_f32_f32);
  parallel_for(num_students, num_threads, [&](int64_t s) { row(params, s); });
}

void scale_cpu(uintptr_t grad_SK, bool bf16, int64_t num_elements, float scale, int num_threads) {
  if (scale == 1.0f) return;
  parallel_for((num_elements + kScaleTask - 1) / kScaleTask, num_threads, [&](int64_t task) {
    const int64_t begin = task * kScaleTask, size = std::min(kScaleTask, num_elements - begin);
    if (bf16) {
      scale_range_bf16(reinterpret_cast<Bfloat16*>(grad_SK) + begin, size, scale);
    } else {
      scale_range_f32(reinterpret_cast<float*>(grad_SK) + begin, size, scale);
    }
  });
}

}  // namespace webssl::prototype_cross_entropy
