// Cross-entropy of student prototypes against targets that are rebuilt on the fly. S student rows, R teacher rows,
// M pairs of a student row, K prototypes.
#pragma once

#include <cstdint>

namespace webssl::prototype_cross_entropy {

struct Params {
  Params(uintptr_t student_SK, int64_t student_stride, uintptr_t teacher_RK, int64_t teacher_stride,
         uintptr_t row_potential_R, uintptr_t prototype_potential_K, uintptr_t target_rows_SM, uintptr_t weights_SM,
         int64_t num_students, int64_t num_teachers, int64_t num_pairs, int64_t num_prototypes,
         double student_temperature, double teacher_temperature, uintptr_t loss_S, uintptr_t grad_SK)
      : student_SK(reinterpret_cast<const void*>(student_SK)),
        teacher_RK(reinterpret_cast<const void*>(teacher_RK)),
        student_stride(student_stride),
        teacher_stride(teacher_stride),
        row_potential_R(reinterpret_cast<const float*>(row_potential_R)),
        prototype_potential_K(reinterpret_cast<const float*>(prototype_potential_K)),
        target_rows_SM(reinterpret_cast<const int64_t*>(target_rows_SM)),
        weights_SM(reinterpret_cast<const float*>(weights_SM)),
        num_students(num_students),
        num_teachers(num_teachers),
        num_pairs(num_pairs),
        num_prototypes(num_prototypes),
        inverse_student_temperature(static_cast<float>(1.0 / student_temperature)),
        inverse_teacher_temperature(static_cast<float>(1.0 / teacher_temperature)),
        loss_S(reinterpret_cast<double*>(loss_S)),
        grad_SK(reinterpret_cast<void*>(grad_SK)) {}

  const void* student_SK;  // bf16 or fp32, as the teacher's logits; the gradient is as the student's
  const void* teacher_RK;
  int64_t student_stride, teacher_stride;  // in elements; prototypes are contiguous
  const float* row_potential_R;
  const float* prototype_potential_K;
  const int64_t* target_rows_SM;
  const float* weights_SM;
  int64_t num_students, num_teachers, num_pairs, num_prototypes;
  float inverse_student_temperature, inverse_teacher_temperature;
  double* loss_S;
  void* grad_SK;  // rows contiguous; null: not wanted
};

// Entry points: addresses are integers, 0 is null. Strides in elements; prototypes are contiguous.
// Writes the loss of each student row (fp64) and, unless grad_SK is null, the student's gradient in the student's
// dtype, rows contiguous. A pair of weight 0 is skipped; a target row outside [0, R) throws std::out_of_range.
void forward_cpu(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                 bool teacher_bf16, int64_t teacher_stride, uintptr_t row_potential_R, uintptr_t prototype_potential_K,
                 uintptr_t target_rows_SM, uintptr_t weights_SM, int64_t num_students, int64_t num_teachers,
                 int64_t num_pairs, int64_t num_prototypes, double student_temperature, double teacher_temperature,
                 uintptr_t loss_S, uintptr_t grad_SK, int num_threads);

// grad_SK *= scale, rows contiguous.
void scale_cpu(uintptr_t grad_SK, bool bf16, int64_t num_elements, float scale, int num_threads);

// The same on the current GPU, on the caller's stream. A target row out of range makes the row's loss NaN; the scale is
// an fp32 scalar on the device.
void forward_cuda(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                  bool teacher_bf16, int64_t teacher_stride, uintptr_t row_potential_R, uintptr_t prototype_potential_K,
                  uintptr_t target_rows_SM, uintptr_t weights_SM, int64_t num_students, int64_t num_teachers,
                  int64_t num_pairs, int64_t num_prototypes, double student_temperature, double teacher_temperature,
                  uintptr_t loss_S, uintptr_t grad_SK, uintptr_t stream);
void scale_cuda(uintptr_t grad_SK, bool bf16, int64_t num_elements, uintptr_t scale, uintptr_t stream);

// Whether forward_cuda runs on clusters, which read each logit once. Not on GPUs before sm_90, nor for rows that are
// too short or too long or do not all start at a multiple of 16 bytes.
bool on_clusters_cuda(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                      bool teacher_bf16, int64_t teacher_stride, uintptr_t prototype_potential_K,
                      int64_t num_prototypes);

}  // namespace webssl::prototype_cross_entropy
