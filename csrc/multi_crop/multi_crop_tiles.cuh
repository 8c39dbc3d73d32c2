// How multi_crop's work is laid out on a GPU, and what its kernels do to single pixels. For multi_crop_cuda.cu alone:
// the functions have internal linkage.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/bfloat16.h"
#include "core/host_device.h"
#include "multi_crop/multi_crop.h"
#include "multi_crop/multi_crop_math.h"

namespace webssl {
namespace multi_crop {
namespace {

constexpr int kTilePx = 32;  // most of a tile's side, and the lanes of a warp
constexpr int kWarps = 8;
constexpr int kThreads = kTilePx * kWarps;
constexpr int64_t kPassFloats = 8 * 1024 * 1024;  // 32 MiB, of the 40 to 50 MiB of L2 of the large GPUs
constexpr int64_t kMaxImagesPerPass = 65535;      // a grid's limit

struct Crop {
  void* out;             // [B, 3, S, S]
  int64_t planes_begin;  // of its [3, S, S] floats in an image's part of the workspace
  int32_t size_px;
  int32_t tiles_begin;  // its first tile among those of an image
};

// An image's part of the workspace holds the planes of its crops, then the gray sum of each of their tiles.
struct Layout {
  Crop crops_V[kMaxCropsCuda];
  int32_t num_crops, num_tiles;
  int64_t grays_begin;

  int64_t floats_per_image() const { return grays_begin + num_tiles; }
  int64_t images_that_fit(int64_t workspace_floats) const {
    return std::clamp<int64_t>(workspace_floats / std::max<int64_t>(floats_per_image(), 1), 1, kMaxImagesPerPass);
  }
};

struct Pass {
  Layout layout;
  const uint8_t* const* images_B;  // this and the next three: on the device
  const int32_t* image_sizes_B2;
  const float* parameters_BVP;
  float* workspace;
  int64_t first_image;
  float scale_3[3], shift_3[3];  // of the normalisation
};

WEBSSL_HD int32_t tiles_per_side(int32_t size_px) { return (size_px + kTilePx - 1) / kTilePx; }

// ---------------------------------------------------------------- what a block works on

struct Tile {
  int32_t crop;           // of the image
  int64_t image;          // of the batch
  int32_t index, num;     // among the tiles of the crop
  int32_t y, x;           // first row and column
  int32_t rows, columns;  // at most kTilePx
  int32_t size_px;        // of the crop
  float* image_workspace;
};

__device__ Tile tile_of_block(const Pass& pass) {
  const Layout& layout = pass.layout;
  const int32_t number = static_cast<int32_t>(blockIdx.x);
  Tile tile;
  tile.crop = 0;
  while (tile.crop + 1 < layout.num_crops && number >= layout.crops_V[tile.crop + 1].tiles_begin) ++tile.crop;
  tile.image = pass.first_image + blockIdx.y;
  tile.size_px = layout.crops_V[tile.crop].size_px;
  const int32_t per_side = tiles_per_side(tile.size_px);
  const int32_t side_px = (tile.size_px + per_side - 1) / per_side;  // equal tiles rather than full and narrow ones
  tile.index = number - layout.crops_V[tile.crop].tiles_begin;
  tile.num = per_side * per_side;
  tile.y = tile.index / per_side * side_px;
  tile.x = tile.index % per_side * side_px;
  tile.rows = min(side_px, tile.size_px - tile.y);
  tile.columns = min(side_px, tile.size_px - tile.x);
  tile.image_workspace = pass.workspace + static_cast<int64_t>(blockIdx.y) * (layout.grays_begin + layout.num_tiles);
  return tile;
}

struct Rgb {
  float r, g, b;
};

// A crop's planes between the launches.
struct Planes {
  float* data;
  int32_t size_px;

  __device__ Planes(const Pass& pass, const Tile& tile)
      : data(tile.image_workspace + pass.layout.crops_V[tile.crop].planes_begin), size_px(tile.size_px) {}
  __device__ int64_t at(int32_t y, int32_t x) const { return static_cast<int64_t>(y) * size_px + x; }
  __device__ int64_t plane_size() const { return static_cast<int64_t>(size_px) * size_px; }
  __device__ Rgb load(int32_t y, int32_t x) const {
    const float* pixel = data + at(y, x);
    return {pixel[0], pixel[plane_size()], pixel[2 * plane_size()]};
  }
  __device__ void store(int32_t y, int32_t x, const Rgb& pixel) const {
    float* out = data + at(y, x);
    out[0] = pixel.r;
    out[plane_size()] = pixel.g;
    out[2 * plane_size()] = pixel.b;
  }
};

// The parameters of the block's crop, in shared memory. Ends with a barrier.
__device__ void load_parameters(const Pass& pass, const Tile& tile, float* parameters) {
  const int64_t row = tile.image * pass.layout.num_crops + tile.crop;
  if (threadIdx.x < kNumColumns) parameters[threadIdx.x] = pass.parameters_BVP[row * kNumColumns + threadIdx.x];
  __syncthreads();
}

// Whether a crop is finished once it is resampled and its color operations are applied.
__device__ bool is_pointwise(const ColorChain& chain, const float* parameters) {
  return !chain.has_contrast() && !(parameters[kBlurSigma] > 0.0f);
}

// The operations at places [begin, end) of the chain.
__device__ Rgb apply_colors(const ColorChain& chain, int begin, int end, const float* parameters, float mean_gray,
                            Rgb pixel) {
  for (int place = begin; place < end; ++place) {
    const int operation = chain.operation(place);
    const float factor = parameters[kBrightness + operation];
    if (operation == kApplyHue) {
      shift_hue(pixel.r, pixel.g, pixel.b, hue_shift_in_sixths(factor));
    } else {
      const float degenerate = operation == kApplyBrightness ? 0.0f
                               : operation == kApplyContrast ? mean_gray
                                                             : luma(pixel.r, pixel.g, pixel.b);
      pixel = {blend(degenerate, pixel.r, factor), blend(degenerate, pixel.g, factor),
               blend(degenerate, pixel.b, factor)};
    }
  }
  return pixel;
}

__device__ Rgb to_gray(const Rgb& pixel) {
  const float gray = luma(pixel.r, pixel.g, pixel.b);
  return {gray, gray, gray};
}

// Solarises, normalises and writes one pixel of the result.
template <typename Out>
__device__ void store_result(const Pass& pass, const Tile& tile, const float* parameters, int32_t y, int32_t x,
                             const Rgb& pixel) {
  const int64_t plane_size = static_cast<int64_t>(tile.size_px) * tile.size_px;
  Out* out = static_cast<Out*>(pass.layout.crops_V[tile.crop].out) + tile.image * 3 * plane_size +
             static_cast<int64_t>(y) * tile.size_px + x;
  const float threshold = parameters[kSolarizeThreshold];
  store_f32(out, solarize(pixel.r, threshold) * pass.scale_3[0] + pass.shift_3[0]);
  store_f32(out + plane_size, solarize(pixel.g, threshold) * pass.scale_3[1] + pass.shift_3[1]);
  store_f32(out + 2 * plane_size, solarize(pixel.b, threshold) * pass.scale_3[2] + pass.shift_3[2]);
}

}  // namespace
}  // namespace multi_crop
}  // namespace webssl
