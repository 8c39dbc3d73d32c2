// Augmented crops of uint8 images. See webssl_fast/ops/multi_crop.py for what each operation is.
// Dimensions: B images, V crops, P parameters, S crop size in pixels.
#pragma once

#include <cstdint>

namespace webssl {
namespace multi_crop {

struct Params {
  const uint8_t* const* images_B;  // [height, width, 3] each, contiguous
  const int32_t* image_sizes_B2;   // height, width
  const float* parameters_BVP;     // columns: multi_crop_math.h
  const int32_t* sizes_px_V;
  void* const* crops_V;  // [B, 3, S, S] each, fp32 or bf16
  int64_t num_images, num_crops;
  const float* mean_3;  // of pixels in [0, 1]
  const float* std_3;
  bool bfloat16;
  int num_threads;
};

void multi_crop_cpu(const Params& params);

// The same from addresses, for the bindings.
void multi_crop_cpu_at(uintptr_t images_B, uintptr_t image_sizes_B2, uintptr_t parameters_BVP, uintptr_t sizes_px_V,
                       uintptr_t crops_V, int64_t num_images, int64_t num_crops, uintptr_t mean_3, uintptr_t std_3,
                       bool bfloat16, int num_threads);

// The same on the current GPU, on the caller's stream. images_B, image_sizes_B2, parameters_BVP and the workspace lie
// on the device; sizes_px_V, crops_V, mean_3 and std_3 on the host. So many images go at once as the workspace holds:
// one at least, best workspace_floats_cuda floats. Throws std::invalid_argument for more than kMaxCropsCuda crops of an
// image.
constexpr int kMaxCropsCuda = 64;
int64_t workspace_floats_cuda(uintptr_t sizes_px_V, int64_t num_images, int64_t num_crops);
void multi_crop_cuda(uintptr_t images_B, uintptr_t image_sizes_B2, uintptr_t parameters_BVP, uintptr_t sizes_px_V,
                     uintptr_t crops_V, int64_t num_images, int64_t num_crops, uintptr_t mean_3, uintptr_t std_3,
                     bool bfloat16, uintptr_t workspace, int64_t workspace_floats, uintptr_t stream);

// Draws parameters_BVP (fp32) from image_sizes_B2 (int32), recipes_VR (fp64: Recipe's fields) and positions_B (int64).
void draw_crop_parameters_at(uintptr_t image_sizes_B2, uintptr_t recipes_VR, uint64_t seed, uintptr_t positions_B,
                             int64_t num_images, int64_t num_crops, uintptr_t parameters_BVP);

}  // namespace multi_crop
}  // namespace webssl
