// Loss and gradient with one read of every logit: a cluster holds a student row's exponentials and targets between the
// sums over the row and the gradient. The next rows are copied meanwhile.
#pragma once

#include "core/cluster_rows.cuh"
#include "prototype_cross_entropy/prototype_cross_entropy_rows.cuh"

namespace webssl::prototype_cross_entropy {

// A stage holds slices of a student row and of the teacher row of its first pair; as many as shared memory takes.
template <typename Student, typename Teacher>
constexpr int kStages = sizeof(Student) + sizeof(Teacher) <= 4 ? 2 : 1;

template <typename Student, typename Teacher, int kPieces>
constexpr size_t kStageBytes = StagedSlice<Student, kPieces>::kBytes + StagedSlice<Teacher, kPieces>::kBytes;

template <typename Student, typename Teacher, int kPieces>
constexpr size_t cluster_shared_bytes() {
  return StagedSlice<float, kPieces>::kBytes + kStages<Student, Teacher> * kStageBytes<Student, Teacher, kPieces> +
         WarpPartials<RowSums>::kBytes;
}

// Grid: any number of clusters, which take the student rows in turn. K is a multiple of 8, at most kMaxClusterRow; all
// rows start at a multiple of 16 bytes, and so do the prototype potentials.
template <typename Student, typename Teacher, int kPieces>
__global__ void __launch_bounds__(kClusterThreads, 1) student_rows_on_cluster(Params params) {
  constexpr int kNumStages = kStages<Student, Teacher>;
  constexpr size_t kBytes = kStageBytes<Student, Teacher, kPieces>;
  auto* shared = dynamic_shared<unsigned char>();
  const StagedSlice<float, kPieces> potential{reinterpret_cast<uint4*>(shared)};
  unsigned char* stages = shared + potential.kBytes;
  WarpPartials<RowSums> warp_partials(stages + kNumStages * kBytes);
  const auto student_slice = [&](int stage) {
    return StagedSlice<Student, kPieces>{reinterpret_cast<uint4*>(stages + stage * kBytes)};
  };
  const auto teacher_slice = [&](int stage) {
    return StagedSlice<Teacher, kPieces>{
        reinterpret_cast<uint4*>(stages + stage * kBytes + StagedSlice<Student, kPieces>::kBytes)};
  };

  const RowShare share(params.num_prototypes);
  const int64_t cluster = blockIdx.x / kClusterSize, num_clusters = gridDim.x / kClusterSize;
  struct Rows {  // of a student row whose pairs count; otherwise null
    const Student* student;
    const Teacher* teacher;
  };
  const auto rows_of = [&](int64_t s) -> Rows {
    if (s >= params.num_students) return {};
    const Pairs pairs(params, s);
    if (!pairs.count()) return {};
    return {student_row<Student>(params, s), teacher_row<Teacher>(params, pairs.rows_M[pairs.first])};
  };
  const auto copy_rows = [&](int stage, const Rows& rows) {
    student_slice(stage).copy(rows.student, share);
    teacher_slice(stage).copy(rows.teacher, share);
    async_copy_commit();
  };
  potential.copy(params.prototype_potential_K, share);
  async_copy_commit();
  for (int stage = 0; stage < kNumStages; ++stage) copy_rows(stage, rows_of(cluster + stage * num_clusters));
  async_copy_wait<kNumStages>();
  potential.fill_rest(RowSums::empty().max, share);  // no target lies beyond the row

  int stage = 0;
  for (int64_t s = cluster; s < params.num_students; s += num_clusters, stage = (stage + 1) % kNumStages) {
    // Read while copies are under way.
    const Pairs pairs(params, s);
    const Rows next = rows_of(s + kNumStages * num_clusters);
    async_copy_wait<kNumStages - 1>();
    Student* grad = gradient_row<Student>(params, s);
    if (!pairs.count()) {
      if (cluster_rank() == 0 && threadIdx.x == 0) params.loss_S[s] = pairs.loss();
      for (int piece = 0; grad && piece < kPieces; ++piece) {
        if (share.owns(piece)) store_wide<kWide>(grad + share.begin(piece), {});
      }
      copy_rows(stage, next);
      continue;
    }

    float e[kPieces][kWide], target[kPieces][kWide] = {};  // e is y at first
    RowSums own = RowSums::empty();
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      student_slice(stage).read(piece, e[piece]);
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        e[piece][k] = share.owns(piece) ? e[piece][k] * params.inverse_student_temperature : own.empty().max;
        own.max = fmaxf(own.max, e[piece][k]);
      }
    }
    const auto add_pair = [&](int64_t m, auto read) {
      const float weight = pairs.weights_M[m], row_potential = params.row_potential_R[pairs.rows_M[m]];
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        float potentials[kWide], logits[kWide] = {};
        potential.read(piece, potentials);
        read(piece, logits);
#pragma unroll
        for (int k = 0; k < kWide; ++k) {
          target[piece][k] += weight * target_probability(logits[k], params.inverse_teacher_temperature, row_potential,
                                                          potentials[k], FastExp());
        }
      }
    };
    add_pair(pairs.first, [&](int piece, float (&logits)[kWide]) { teacher_slice(stage).read(piece, logits); });
    copy_rows(stage, next);
    for (int64_t m = pairs.first + 1; m < params.num_pairs; ++m) {
      if (pairs.weights_M[m] == 0.0f) continue;
      const Teacher* teacher = teacher_row<Teacher>(params, pairs.rows_M[m]);
      add_pair(m, [&](int piece, float (&logits)[kWide]) {
        if (share.owns(piece)) load_wide(teacher + share.begin(piece), logits);
      });
    }
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        const float shifted_y = e[piece][k] - own.max;
        e[piece][k] = fast_exp(shifted_y);
        own.sum += e[piece][k];
        own.mass += target[piece][k];
        own.product += target[piece][k] * shifted_y;
      }
    }

    const RowSums total = total_row_sums<kClusterPartials>(warp_partials.gather(warp_row_sums(own)));
    if (cluster_rank() == 0 && threadIdx.x == 0) params.loss_S[s] = row_loss(total);
    if (!grad) continue;
    const float mass_over_sum = total.mass / total.sum * fast_exp(own.max - total.max);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (!share.owns(piece)) continue;
      float gradient[kWide];
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        gradient[k] =
            params.inverse_student_temperature * student_gradient(e[piece][k], mass_over_sum, target[piece][k]);
      }
      store_wide(grad + share.begin(piece), gradient);
    }
  }
  async_copy_wait<0>();
}

}  // namespace webssl::prototype_cross_entropy
