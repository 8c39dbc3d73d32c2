// Cross-entropy of student prototypes against targets that are rebuilt on the fly. S student rows, R teacher rows,
// M pairs of a student row, K prototypes.
#pragma once

#include <cstdint>

namespace webssl::prototype_cross_entropy {

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

}  // namespace webssl::prototype_cross_entropy
