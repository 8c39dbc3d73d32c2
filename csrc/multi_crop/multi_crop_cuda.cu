// multi_crop on CUDA: a block of threads makes one tile of one crop. Two launches, since contrast needs the mean gray
// of the whole crop and blur needs neighbours: `resample_tiles` cuts, flips and applies what comes before contrast,
// `finish_tiles` does the rest. Crops that need neither are finished by the first. Images go in passes whose pixels
// between the two launches fit the L2 cache.
//
// Resampling goes through shared memory, a band of source rows at a time: horizontally from bytes, then vertically. So
// any shrinking fits. Horizontal weights are computed where they are used, since a thread has one column.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/bfloat16.h"
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "multi_crop/multi_crop.h"
#include "multi_crop/multi_crop_math.h"
#include "multi_crop/multi_crop_tiles.cuh"

namespace webssl {
namespace multi_crop {
namespace {

constexpr int kRowsPerThread = kTilePx / kWarps;
constexpr int kBandRows = 32;                       // source rows at a time
constexpr int kHaloPx = kTilePx + 2 * kBlurRadius;  // side of what a blurred tile reads

// ---------------------------------------------------------------- resampling

// What one output of an axis reads: source pixel first + k with weight cubic_weight(offset + k * step) * inverse_sum.
struct Taps {
  int32_t first, last;
  float offset, step, inverse_sum;
};

__device__ Taps make_taps(const Axis& axis, int32_t output) {
  const TapRange range = tap_range(axis, tap_center(axis, output));
  const float offset = tap_offset(axis, output, range.first), step = tap_step(axis);
  float sum = 0.0f;
  for (int32_t k = 0; k < range.last - range.first; ++k) sum += cubic_weight(offset + step * k);
  return {range.first, range.last, offset, step, 1.0f / sum};
}

template <typename Out>
__global__ void __launch_bounds__(kThreads) resample_tiles(Pass pass) {
  __shared__ float parameters[kNumColumns];
  __shared__ Taps row_taps[kTilePx], column_taps[kTilePx];
  __shared__ float row_weights[kTilePx][kBandRows];
  __shared__ float band[kBandRows][3][kTilePx];  // source rows, resampled horizontally
  __shared__ float grays[kThreads];
  const Tile tile = tile_of_block(pass);
  load_parameters(pass, tile, parameters);
  const int lane = threadIdx.x % kTilePx, warp = threadIdx.x / kTilePx;

  const int32_t* source_size = pass.image_sizes_B2 + 2 * tile.image;
  const bool read_outside = parameters[kReadOutside] != 0.0f;
  if (warp == 0) {  // lanes beyond the tile repeat its last row or column
    const Axis axis = make_axis(parameters[kTop], parameters[kHeight], source_size[0], read_outside, tile.size_px);
    row_taps[lane] = make_taps(axis, tile.y + min(lane, tile.rows - 1));
  } else if (warp == 1) {
    const Axis axis = make_axis(parameters[kLeft], parameters[kWidth], source_size[1], read_outside, tile.size_px);
    const int32_t x = tile.x + min(lane, tile.columns - 1);
    column_taps[lane] = make_taps(axis, parameters[kFlip] != 0.0f ? tile.size_px - 1 - x : x);
  }
  __syncthreads();

  const Taps column = column_taps[lane];
  const int32_t num_taps = column.last - column.first;
  const int64_t row_bytes = 3 * static_cast<int64_t>(source_size[1]);
  const uint8_t* source = pass.images_B[tile.image] + 3 * static_cast<int64_t>(column.first);
  const int32_t source_end = row_taps[tile.rows - 1].last;
  Rgb pixels[kRowsPerThread] = {};
  for (int32_t band_begin = row_taps[0].first; band_begin < source_end; band_begin += kBandRows) {
    for (int i = threadIdx.x; i < kTilePx * kBandRows; i += kThreads) {
      const Taps& row = row_taps[i / kBandRows];
      const int32_t k = band_begin + i % kBandRows - row.first;
      row_weights[i / kBandRows][i % kBandRows] = cubic_weight(row.offset + row.step * k) * row.inverse_sum;
    }
    Rgb sums[kRowsPerThread] = {};
    for (int32_t k = 0; k < num_taps; ++k) {
      const float weight = cubic_weight(column.offset + column.step * k);
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        const int32_t source_y = band_begin + warp + kWarps * i;
        if (source_y >= source_end) break;  // the same for the whole warp
        const uint8_t* pixel = source + source_y * row_bytes + 3 * k;
        sums[i].r += weight * __ldg(pixel);
        sums[i].g += weight * __ldg(pixel + 1);
        sums[i].b += weight * __ldg(pixel + 2);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      float (&row)[3][kTilePx] = band[warp + kWarps * i];
      row[0][lane] = sums[i].r * column.inverse_sum;
      row[1][lane] = sums[i].g * column.inverse_sum;
      row[2][lane] = sums[i].b * column.inverse_sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int32_t y = warp + kWarps * i;
      if (y >= tile.rows) break;
      const int32_t begin = max(row_taps[y].first - band_begin, 0);
      const int32_t end = min(row_taps[y].last - band_begin, kBandRows);
      for (int32_t j = begin; j < end; ++j) {
        const float weight = row_weights[y][j];
        pixels[i].r += weight * band[j][0][lane];
        pixels[i].g += weight * band[j][1][lane];
        pixels[i].b += weight * band[j][2][lane];
      }
    }
    __syncthreads();
  }

  const ColorChain chain(parameters);
  const bool finishes = is_pointwise(chain, parameters);
  const Planes planes(pass, tile);
  float gray = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int32_t y = warp + kWarps * i;
    if (y >= tile.rows || lane >= tile.columns) break;
    Rgb pixel = {clamp_pixel(pixels[i].r), clamp_pixel(pixels[i].g), clamp_pixel(pixels[i].b)};
    pixel = apply_colors(chain, 0, chain.contrast_at, parameters, 0.0f, pixel);
    if (finishes) {
      if (parameters[kGrayscale] != 0.0f) pixel = to_gray(pixel);
      store_result<Out>(pass, tile, parameters, tile.y + y, tile.x + lane, pixel);
    } else {
      gray += luma(pixel.r, pixel.g, pixel.b);
      planes.store(tile.y + y, tile.x + lane, pixel);
    }
  }
  if (!chain.has_contrast()) return;
  gray = block_reduce<kThreads>(gray, grays, [](float& total, float other) { total += other; });
  if (threadIdx.x == 0) tile.image_workspace[pass.layout.grays_begin + blockIdx.x] = gray;
}

// ---------------------------------------------------------------- what needs the whole crop

__device__ float mean_gray_of_crop(const Pass& pass, const Tile& tile, float* shared) {
  const float* grays = tile.image_workspace + pass.layout.grays_begin + pass.layout.crops_V[tile.crop].tiles_begin;
  float sum = 0.0f;
  for (int32_t i = threadIdx.x; i < tile.num; i += kThreads) sum += grays[i];
  sum = block_reduce<kThreads>(sum, shared, [](float& total, float other) { total += other; });
  return sum / (static_cast<float>(tile.size_px) * static_cast<float>(tile.size_px));
}

// The weighed sum of nine values that lie `stride` apart, around the one at `center`.
__device__ float blur_at(const float* center, int stride, const float* weights) {
  float sum = weights[0] * center[0];
#pragma unroll
  for (int i = 1; i <= kBlurRadius; ++i) sum += weights[i] * (center[-i * stride] + center[i * stride]);
  return sum;
}

template <typename Out>
__global__ void __launch_bounds__(kThreads) finish_tiles(Pass pass) {
  __shared__ float parameters[kNumColumns];
  __shared__ float weights[kBlurRadius + 1];
  __shared__ float grays[kThreads];
  __shared__ float halo[3][kHaloPx][kHaloPx];     // the tile and kBlurRadius pixels around it
  __shared__ float blurred[3][kHaloPx][kTilePx];  // horizontally
  const Tile tile = tile_of_block(pass);
  load_parameters(pass, tile, parameters);
  const ColorChain chain(parameters);
  if (is_pointwise(chain, parameters)) return;
  const Planes planes(pass, tile);
  const float mean_gray = chain.has_contrast() ? mean_gray_of_crop(pass, tile, grays) : 0.0f;
  const bool grayscale = parameters[kGrayscale] != 0.0f;
  const float sigma = parameters[kBlurSigma];
  const int lane = threadIdx.x % kTilePx, warp = threadIdx.x / kTilePx;

  if (!(sigma > 0.0f)) {
    for (int32_t y = tile.y + warp; y < tile.y + tile.rows; y += kWarps) {
      if (lane >= tile.columns) break;
      Rgb pixel = planes.load(y, tile.x + lane);
      pixel = apply_colors(chain, chain.contrast_at, chain.num, parameters, mean_gray, pixel);
      if (grayscale) pixel = to_gray(pixel);
      store_result<Out>(pass, tile, parameters, y, tile.x + lane, pixel);
    }
    return;
  }

  if (threadIdx.x == 0) {
    float computed[kBlurRadius + 1];
    blur_weights(sigma, computed);
#pragma unroll
    for (int i = 0; i <= kBlurRadius; ++i) weights[i] = computed[i];
  }
  const int32_t halo_rows = tile.rows + 2 * kBlurRadius, halo_columns = tile.columns + 2 * kBlurRadius;
  for (int32_t i = threadIdx.x; i < halo_rows * halo_columns; i += kThreads) {
    const int32_t row = i / halo_columns, column = i % halo_columns;
    Rgb pixel = planes.load(reflect(tile.y + row - kBlurRadius, tile.size_px),
                            reflect(tile.x + column - kBlurRadius, tile.size_px));
    pixel = apply_colors(chain, chain.contrast_at, chain.num, parameters, mean_gray, pixel);
    if (grayscale) pixel = to_gray(pixel);
    halo[0][row][column] = pixel.r;
    halo[1][row][column] = pixel.g;
    halo[2][row][column] = pixel.b;
  }
  __syncthreads();
  for (int32_t row = warp; row < halo_rows; row += kWarps) {
    if (lane >= tile.columns) break;
    for (int channel = 0; channel < 3; ++channel) {
      blurred[channel][row][lane] = blur_at(&halo[channel][row][lane + kBlurRadius], 1, weights);
    }
  }
  __syncthreads();
  for (int32_t row = warp; row < tile.rows; row += kWarps) {
    if (lane >= tile.columns) break;
    const Rgb pixel = {blur_at(&blurred[0][row + kBlurRadius][lane], kTilePx, weights),
                       blur_at(&blurred[1][row + kBlurRadius][lane], kTilePx, weights),
                       blur_at(&blurred[2][row + kBlurRadius][lane], kTilePx, weights)};
    store_result<Out>(pass, tile, parameters, tile.y + row, tile.x + lane, pixel);
  }
}

// ---------------------------------------------------------------- host

Layout make_layout(const int32_t* sizes_px_V, void* const* crops_V, int64_t num_crops) {
  if (num_crops > kMaxCropsCuda) {
    throw std::invalid_argument("sizes_px has " + std::to_string(num_crops) + " crops of an image; on CUDA at most " +
                                std::to_string(kMaxCropsCuda) + " are made at once: call multi_crop several times");
  }
  Layout layout = {};
  layout.num_crops = static_cast<int32_t>(num_crops);
  for (int64_t v = 0; v < num_crops; ++v) {
    const int32_t size_px = sizes_px_V[v];
    layout.crops_V[v] = {crops_V ? crops_V[v] : nullptr, layout.grays_begin, size_px, layout.num_tiles};
    layout.grays_begin += 3 * static_cast<int64_t>(size_px) * size_px;
    layout.num_tiles += tiles_per_side(size_px) * tiles_per_side(size_px);
  }
  return layout;
}

}  // namespace

int64_t workspace_floats_cuda(uintptr_t sizes_px_V, int64_t num_images, int64_t num_crops) {
  const Layout layout = make_layout(reinterpret_cast<const int32_t*>(sizes_px_V), nullptr, num_crops);
  return std::min(layout.images_that_fit(kPassFloats), num_images) * layout.floats_per_image();
}

void multi_crop_cuda(uintptr_t images_B, uintptr_t image_sizes_B2, uintptr_t parameters_BVP, uintptr_t sizes_px_V,
                     uintptr_t crops_V, int64_t num_images, int64_t num_crops, uintptr_t mean_3, uintptr_t std_3,
                     bool bfloat16, uintptr_t workspace, int64_t workspace_floats, uintptr_t stream) {
  if (num_images == 0 || num_crops == 0) return;
  Pass pass = {
      make_layout(reinterpret_cast<const int32_t*>(sizes_px_V), reinterpret_cast<void* const*>(crops_V), num_crops),
      reinterpret_cast<const uint8_t* const*>(images_B),
      reinterpret_cast<const int32_t*>(image_sizes_B2),
      reinterpret_cast<const float*>(parameters_BVP),
      reinterpret_cast<float*>(workspace),
      0,
      {},
      {}};
  for (int channel = 0; channel < 3; ++channel) {
    const float mean = reinterpret_cast<const float*>(mean_3)[channel];
    const float std = reinterpret_cast<const float*>(std_3)[channel];
    pass.scale_3[channel] = 1.0f / (255.0f * std);
    pass.shift_3[channel] = -mean / std;
  }
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  const int64_t images_per_pass = pass.layout.images_that_fit(workspace_floats);
  for (; pass.first_image < num_images; pass.first_image += images_per_pass) {
    const int64_t num_here = std::min(images_per_pass, num_images - pass.first_image);
    const dim3 grid(static_cast<unsigned>(pass.layout.num_tiles), static_cast<unsigned>(num_here));
    if (bfloat16) {
      launch(resample_tiles<Bfloat16>, grid, dim3(kThreads), 0, cuda_stream, pass);
      launch(finish_tiles<Bfloat16>, grid, dim3(kThreads), 0, cuda_stream, pass);
    } else {
      launch(resample_tiles<float>, grid, dim3(kThreads), 0, cuda_stream, pass);
      launch(finish_tiles<float>, grid, dim3(kThreads), 0, cuda_stream, pass);
    }
  }
}

}  // namespace multi_crop
}  // namespace webssl
