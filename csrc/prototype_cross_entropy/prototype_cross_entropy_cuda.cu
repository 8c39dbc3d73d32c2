// On GPUs with clusters a row stays on chip (prototype_cross_entropy_cluster.cuh). Elsewhere a block owns a student row
// and reads it, and its teacher rows, twice: for the sums, then (mostly from the L2 cache) for the gradient.
#include <algorithm>

#include "core/bfloat16.h"
#include "core/launch.cuh"
#include "core/vector.cuh"
#include "prototype_cross_entropy/prototype_cross_entropy.h"
#include "prototype_cross_entropy/prototype_cross_entropy_cluster.cuh"
#include "prototype_cross_entropy/prototype_cross_entropy_math.h"
#include "prototype_cross_entropy/prototype_cross_entropy_rows.cuh"

namespace webssl::prototype_cross_entropy {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kMaxClusters = 16;  // on the 132 multiprocessors of an H100
constexpr unsigned kMaxScaleBlocks = 4096;

// y of kWidth prototypes and their sum_m w_m p_m.
template <typename Student, typename Teacher, int kWidth>
__device__ __forceinline__ void load_pieces(const Params& params, const Pairs& pairs, int64_t s, int64_t k,
                                            float (&y)[kWidth], float (&target)[kWidth]) {
  load_wide(student_row<Student>(params, s) + k, y);
  float potential[kWidth];
  load_wide(params.prototype_potential_K + k, potential);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    y[i] *= params.inverse_student_temperature;
    target[i] = 0.0f;
  }
  for (int64_t m = pairs.first; m < params.num_pairs; ++m) {
    const float weight = pairs.weights_M[m];
    if (weight == 0.0f) continue;
    const int64_t row = pairs.rows_M[m];
    float logits[kWidth];
    load_wide(teacher_row<Teacher>(params, row) + k, logits);
    const float row_potential = params.row_potential_R[row];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      target[i] += weight * target_probability(logits[i], params.inverse_teacher_temperature, row_potential,
                                               potential[i], FastExp());
    }
  }
}

template <typename Student, typename Teacher, int kWidth>
__global__ void __launch_bounds__(kThreads) student_row_in_block(Params params) {
  constexpr int64_t kStep = int64_t{kThreads} * kWidth;
  __shared__ RowSums warps[kThreads / 32];
  const int64_t s = blockIdx.x, begin = static_cast<int64_t>(threadIdx.x) * kWidth;
  Student* grad = gradient_row<Student>(params, s);
  const Pairs pairs(params, s);
  if (!pairs.count()) {
    if (threadIdx.x == 0) params.loss_S[s] = pairs.loss();
    for (int64_t k = begin; grad && k < params.num_prototypes; k += kStep) store_wide<kWidth>(grad + k, {});
    return;
  }

  RowSums own = RowSums::empty();
  float y[kWidth], target[kWidth];
  for (int64_t k = begin; k < params.num_prototypes; k += kStep) {
    load_pieces<Student, Teacher>(params, pairs, s, k, y, target);
    float max = own.max;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) max = fmaxf(max, y[i]);
    own = raised(own, max, FastExp());
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      own.sum += fast_exp(y[i] - max);
      own.mass += target[i];
      own.product += target[i] * (y[i] - max);
    }
  }
  own = warp_row_sums(own);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  const RowSums total = total_row_sums<kThreads / 32>(warps);
  if (threadIdx.x == 0) params.loss_S[s] = row_loss(total);
  if (!grad) return;
  const float mass_over_sum = total.mass / total.sum;
  for (int64_t k = begin; k < params.num_prototypes; k += kStep) {
    load_pieces<Student, Teacher>(params, pairs, s, k, y, target);
    float gradient[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      gradient[i] =
          params.inverse_student_temperature * student_gradient(fast_exp(y[i] - total.max), mass_over_sum, target[i]);
    }
    store_wide(grad + k, gradient);
  }
}

// The first num_wide x 8 elements in wide pieces.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_elements(T* grad, int64_t num_wide, int64_t num_elements, const float* scale) {
  const float factor = *scale;
  if (factor == 1.0f) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = thread; i < num_wide; i += step) {
    float values[kWide];
    load_wide(grad + i * kWide, values);
#pragma unroll
    for (int j = 0; j < kWide; ++j) values[j] *= factor;
    store_wide(grad + i * kWide, values);
  }
  for (int64_t i = num_wide * kWide + thread; i < num_elements; i += step) {
    store_f32(grad + i, load_f32(grad + i) * factor);
  }
}

// fn(Student(), Teacher())
template <typename Function>
auto with_types(bool student_bf16, bool teacher_bf16, Function fn) {
  if (student_bf16) return teacher_bf16 ? fn(Bfloat16(), Bfloat16()) : fn(Bfloat16(), float());
  return teacher_bf16 ? fn(float(), Bfloat16()) : fn(float(), float());
}

// fn(kernel, bytes of shared memory) with the instance that holds rows of this length.
template <typename Student, typename Teacher, typename Function>
auto with_cluster_kernel(int64_t num_prototypes, Function fn) {
  switch (pieces_of_thread(num_prototypes)) {
    case 1:
      return fn(student_rows_on_cluster<Student, Teacher, 1>, cluster_shared_bytes<Student, Teacher, 1>());
    case 2:
      return fn(student_rows_on_cluster<Student, Teacher, 2>, cluster_shared_bytes<Student, Teacher, 2>());
    default:
      return fn(student_rows_on_cluster<Student, Teacher, 4>, cluster_shared_bytes<Student, Teacher, 4>());
  }
}

template <typename Student, typename Teacher>
bool is_wide(const Params& params) {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  return rows_are_wide(address(params.student_SK), sizeof(Student), params.num_prototypes, params.student_stride) &&
         rows_are_wide(address(params.teacher_RK), sizeof(Teacher), params.num_prototypes, params.teacher_stride) &&
         address(params.prototype_potential_K) % 16 == 0;
}

template <typename Student, typename Teacher>
bool on_clusters(const Params& params) {
  if (params.num_prototypes < kMinClusterRow || params.num_prototypes > kMaxClusterRow) return false;
  if (!is_wide<Student, Teacher>(params)) return false;
  return with_cluster_kernel<Student, Teacher>(
      params.num_prototypes, [](auto* kernel, size_t bytes) { return runs_on_clusters(kernel, bytes); });
}

template <typename Student, typename Teacher>
void forward(const Params& params, cudaStream_t stream) {
  if (on_clusters<Student, Teacher>(params)) {
    const auto num_clusters = static_cast<unsigned>(std::min(params.num_students, kMaxClusters));
    with_cluster_kernel<Student, Teacher>(params.num_prototypes, [&](auto* kernel, size_t shared_bytes) {
      launch_cluster(kernel, kClusterSize, num_clusters * kClusterSize, kClusterThreads, shared_bytes, stream, params);
    });
  } else {
    launch(is_wide<Student, Teacher>(params) ? student_row_in_block<Student, Teacher, kWide>
                                             : student_row_in_block<Student, Teacher, 1>,
           static_cast<unsigned>(params.num_students), kThreads, 0, stream, params);
  }
}

}  // namespace

void forward_cuda(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                  bool teacher_bf16, int64_t teacher_stride, uintptr_t row_potential_R, uintptr_t prototype_potential_K,
                  uintptr_t target_rows_SM, uintptr_t weights_SM, int64_t num_students, int64_t num_teachers,
                  int64_t num_pairs, int64_t num_prototypes, double student_temperature, double teacher_temperature,
                  uintptr_t loss_S, uintptr_t grad_SK, uintptr_t stream) {
  const Params params(student_SK, student_stride, teacher_RK, teacher_stride, row_potential_R, prototype_potential_K,
                      target_rows_SM, weights_SM, num_students, num_teachers, num_pairs, num_prototypes,
                      student_temperature, teacher_temperature, loss_S, grad_SK);
  with_types(student_bf16, teacher_bf16, [&](auto student, auto teacher) {
    forward<decltype(student), decltype(teacher)>(params, reinterpret_cast<cudaStream_t>(stream));
  });
}

bool on_clusters_cuda(uintptr_t student_SK, bool student_bf16, int64_t student_stride, uintptr_t teacher_RK,
                      bool teacher_bf16, int64_t teacher_stride, uintptr_t prototype_potential_K,
                      int64_t num_prototypes) {
  const Params params(student_SK, student_stride, teacher_RK, teacher_stride, 0, prototype_potential_K, 0, 0, 0, 0, 0,
                      num_prototypes, 1.0, 1.0, 0, 0);
  return with_types(student_bf16, teacher_bf16, [&](auto student, auto teacher) {
    return on_clusters<decltype(student), decltype(teacher)>(params);
  });
}

void scale_cuda(uintptr_t grad_SK, bool bf16, int64_t num_elements, uintptr_t scale, uintptr_t stream) {
  const int64_t num_wide = grad_SK % 16 == 0 ? num_elements / kWide : 0;
  const int64_t num_pieces = num_wide + (num_elements - num_wide * kWide);
  const auto num_blocks =
      static_cast<unsigned>(std::min<int64_t>((num_pieces + kThreads - 1) / kThreads, kMaxScaleBlocks));
  const auto scaled = [&](auto* grad) {
    launch(scale_elements<std::remove_pointer_t<decltype(grad)>>, num_blocks, kThreads, 0,
           reinterpret_cast<cudaStream_t>(stream), grad, num_wide, num_elements, reinterpret_cast<const float*>(scale));
  };
  bf16 ? scaled(reinterpret_cast<Bfloat16*>(grad_SK)) : scaled(reinterpret_cast<float*>(grad_SK));
}

}  // namespace webssl::prototype_cross_entropy
