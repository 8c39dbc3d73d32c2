#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/bfloat16.h"
#include "core/exp.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "prototype_cross_entropy/prototype_cross_entropy.h"
#include "prototype_cross_entropy/prototype_cross_entropy_math.h"

namespace webssl::prototype_cross_entropy {
namespace {

constexpr int64_t kChunk = 1024;                  // prototypes that share a shift of their exponents
constexpr float kHeadroom = 40.0f;                // by which y may exceed the shift: e^40 * K stays far below 3e38
constexpr int64_t kScaleTask = int64_t{1} << 18;  // elements

struct StudentSums {
  float max;  // of y
  float sum;  // of exp(y - shift)
};

struct PairSums {
  float mass;     // sum p
  float product;  // sum p (y - shift): without the shift, large logits would cancel in fp32
};

// y - shift, and exp of it if the gradient needs it, of one chunk.
template <bool kWithGradient>
WEBSSL_HD StudentSums student_chunk(const float* student, float inverse_temperature, float shift, int64_t size,
                                    const Exp& exp, float* shifted_y, float* e) {
  float max = -3.402823466e38f, sum = 0.0f;
#pragma omp simd reduction(max : max) reduction(+ : sum)
  for (int64_t k = 0; k < size; ++k) {
    const float y = student[k] * inverse_temperature;
    max = y > max ? y : max;
    shifted_y[k] = y - shift;
    const float value = exp(y - shift);
    if (kWithGradient) e[k] = value;
    sum += value;
  }
  return {max, sum};
}

template <bool kWithGradient, bool kFirst>
WEBSSL_HD PairSums pair_chunk(const float* teacher, float inverse_temperature, float row_potential,
                              const float* prototype_potential, float weight, const float* shifted_y, int64_t size,
                              const Exp& exp, float* target) {
  float mass = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : mass, product)
  for (int64_t k = 0; k < size; ++k) {
    const float p = target_probability(teacher[k], inverse_temperature, row_potential, prototype_potential[k], exp);
    mass += p;
    product += p * shifted_y[k];
    if (kWithGradient) target[k] = kFirst ? weight * p : target[k] + weight * p;
  }
  return {mass, product};
}

// The number of pairs that count. Throws where one of them has no teacher row.
int64_t count_pairs(const Params& params, int64_t s) {
  int64_t count = 0;
  for (int64_t m = 0; m < params.num_pairs; ++m) {
    if (params.weights_SM[s * params.num_pairs + m] == 0.0f) continue;
    const int64_t row = params.target_rows_SM[s * params.num_pairs + m];
    if (row < 0 || row >= params.num_teachers) {
      throw std::out_of_range("target_rows_SM[" + std::to_string(s) + ", " + std::to_string(m) + "] is " +
                              std::to_string(row) + ", but there are " + std::to_string(params.num_teachers) +
                              " teacher rows");
    }
    ++count;
  }
  return count;
}

template <typename Student, typename Teacher, bool kWithGradient>
WEBSSL_HD void student_row(const Params& params, int64_t s) {
  const Exp exp;
  const int64_t num_prototypes = params.num_prototypes, num_pairs = params.num_pairs;
  const int64_t num_chunks = (num_prototypes + kChunk - 1) / kChunk;
  const float* weights_M = params.weights_SM + s * num_pairs;
  const int64_t* target_rows_M = params.target_rows_SM + s * num_pairs;
  const Student* student = static_cast<const Student*>(params.student_SK) + s * params.student_stride;
  float* shift_C = thread_scratch(num_chunks + (kWithGradient ? 2 * num_prototypes : 0));
  float* e_K = shift_C + num_chunks;
  float* target_K = e_K + num_prototypes;
  float shifted_y[kChunk], buffer[kChunk];

  // The row's loss is mass * (shift + log sum) - product, mass and product weighted by pair.
  double sum = 0.0, mass = 0.0, product = 0.0;
  float shift = load_f32(student) * params.inverse_student_temperature;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, size = std::min(kChunk, num_prototypes - begin);
    const float* x = widened(student + begin, size, buffer);
    // The largest logit is not known in advance, and rarely needed: a running shift is raised, and the chunk done
    // again, only where it would overflow.
    StudentSums student_sums;
    for (bool again = true; again;) {
      student_sums =
          student_chunk<kWithGradient>(x, params.inverse_student_temperature, shift, size, exp, shifted_y, e_K + begin);
      again = student_sums.max - shift > kHeadroom;
      if (again) {
        sum *= exp(shift - student_sums.max);
        shift = student_sums.max;
      }
    }
    shift_C[chunk] = shift;
    sum += student_sums.sum;

    bool first = true;
    for (int64_t m = 0; m < num_pairs; ++m) {
      const float weight = weights_M[m];
      if (weight == 0.0f) continue;
      const int64_t row = target_rows_M[m];
      const float* teacher =
          widened(static_cast<const Teacher*>(params.teacher_RK) + row * params.teacher_stride + begin, size, buffer);
      const float row_potential = params.row_potential_R[row];
      const float* prototype_potential = params.prototype_potential_K + begin;
      const PairSums sums =
          first ? pair_chunk<kWithGradient, true>(teacher, params.inverse_teacher_temperature, row_potential,
                                                  prototype_potential, weight, shifted_y, size, exp, target_K + begin)
                : pair_chunk<kWithGradient, false>(teacher, params.inverse_teacher_temperature, row_potential,
                                                   prototype_potential, weight, shifted_y, size, exp, target_K + begin);
      first = false;
      mass += static_cast<double>(weight) * sums.mass;
      product += static_cast<double>(weight) * (sums.product + static_cast<double>(sums.mass) * shift);
    }
  }
  params.loss_S[s] = mass * (shift + std::log(sum)) - product;

  if (!kWithGradient) return;
  Student* grad = static_cast<Student*>(params.grad_SK) + s * num_prototypes;
  const float inverse_temperature = params.inverse_student_temperature;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, num_prototypes);
    const float mass_over_sum = static_cast<float>(mass / sum * exp(shift_C[chunk] - shift));
#pragma omp simd
    for (int64_t k = begin; k < end; ++k) {
      store_f32(grad + k, inverse_temperature * student_gradient(e_K[k], mass_over_sum, target_K[k]));
    }
  }
}

template <typename Student, typename Teacher>
WEBSSL_HD void student_row(const Params& params, int64_t s) {
  if (count_pairs(params, s) == 0) {
    params.loss_S[s] = 0.0;
    if (params.grad_SK) {
      memset(static_cast<Student*>(params.grad_SK) + s * params.num_prototypes, 0,
             params.num_prototypes * sizeof(Student));
    }
  } else if (params.grad_SK) {
    student_row<Student, Teacher, true>(params, s);
  } else {
    student_row<Student, Teacher, false>(params, s);
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
  const Params params(student_SK, student_stride, teacher_RK, teacher_stride, row_potential_R, prototype_potential_K,
                      target_rows_SM, weights_SM, num_students, num_teachers, num_pairs, num_prototypes,
                      student_temperature, teacher_temperature, loss_S, grad_SK);
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
