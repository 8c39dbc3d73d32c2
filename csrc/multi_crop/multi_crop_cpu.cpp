// multi_crop on the CPU: one task makes one crop. Each function below that loops over pixels is compiled for every
// x86-64 level (WEBSSL_MULTIVERSION) and written so that the compiler vectorises it.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "core/parallel.h"
#include "multi_crop/multi_crop.h"
#include "multi_crop/multi_crop_math.h"
#include "multi_crop/multi_crop_resample.h"

namespace webssl {
namespace multi_crop {
namespace {

constexpr int kPixelsInCache = 2048;  // so many pixels of three float planes fit the L1 cache

// Floats on a cache line, kept between crops.
class Buffer {
 public:
  float* reserve(int64_t size) {
    if (size > size_) {
      data_.reset(static_cast<float*>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64)));
      if (!data_) throw std::bad_alloc();
      size_ = size;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

struct Scratch {
  Taps rows, columns;
  std::vector<const uint8_t*> byte_rows;
  std::vector<const float*> float_rows;
  Buffer window, weighed_rows, interleaved, planes, padded, blurred;
};

// ---------------------------------------------------------------- colors

struct Pixels {
  float *r, *g, *b;
  int64_t size;
};

WEBSSL_MULTIVERSION
void blend_with_constant(Pixels pixels, float degenerate, float factor) {
  for (float* channel : {pixels.r, pixels.g, pixels.b}) {
#pragma omp simd
    for (int64_t i = 0; i < pixels.size; ++i) channel[i] = blend(degenerate, channel[i], factor);
  }
}

WEBSSL_MULTIVERSION
void blend_with_gray(Pixels pixels, float factor) {
  float *r = pixels.r, *g = pixels.g, *b = pixels.b;
#pragma omp simd
  for (int64_t i = 0; i < pixels.size; ++i) {
    const float gray = luma(r[i], g[i], b[i]);
    r[i] = blend(gray, r[i], factor);
    g[i] = blend(gray, g[i], factor);
    b[i] = blend(gray, b[i], factor);
  }
}

WEBSSL_MULTIVERSION
void replace_with_gray(Pixels pixels) {
  float *r = pixels.r, *g = pixels.g, *b = pixels.b;
#pragma omp simd
  for (int64_t i = 0; i < pixels.size; ++i) r[i] = g[i] = b[i] = luma(r[i], g[i], b[i]);
}

WEBSSL_MULTIVERSION
void shift_hues(Pixels pixels, float turns) {
  float *r = pixels.r, *g = pixels.g, *b = pixels.b;
  const float shift = hue_shift_in_sixths(turns);
#pragma omp simd
  for (int64_t i = 0; i < pixels.size; ++i) shift_hue(r[i], g[i], b[i], shift);
}

WEBSSL_MULTIVERSION
float sum_gray(Pixels pixels) {
  const float *r = pixels.r, *g = pixels.g, *b = pixels.b;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < pixels.size; ++i) sum += luma(r[i], g[i], b[i]);
  return sum;
}

// The operations at places [begin, end) of the chain.
void apply_colors(const ColorChain& chain, int begin, int end, const float* parameters, float mean_gray,
                  Pixels pixels) {
  for (int place = begin; place < end; ++place) {
    const int operation = chain.operation(place);
    const float factor = parameters[kBrightness + operation];
    switch (operation) {
      case kApplyBrightness:
        blend_with_constant(pixels, 0.0f, factor);
        break;
      case kApplyContrast:
        blend_with_constant(pixels, mean_gray, factor);
        break;
      case kApplySaturation:
        blend_with_gray(pixels, factor);
        break;
      case kApplyHue:
        shift_hues(pixels, factor);
        break;
    }
  }
}

// ---------------------------------------------------------------- blur and output

// `padded` holds kBlurRadius reflected pixels on either side of the row.
WEBSSL_MULTIVERSION
void blur_row(const float* padded, const float* weights, int32_t size, float* out) {
  const float* x = padded + kBlurRadius;
  const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3], w4 = weights[4];
#pragma omp simd
  for (int32_t i = 0; i < size; ++i) {
    out[i] = w0 * x[i] + w1 * (x[i - 1] + x[i + 1]) + w2 * (x[i - 2] + x[i + 2]) + w3 * (x[i - 3] + x[i + 3]) +
             w4 * (x[i - 4] + x[i + 4]);
  }
}

WEBSSL_MULTIVERSION
void blur_columns(const float* const* rows, const float* weights, int32_t size, float* out) {
  const float *a4 = rows[0], *a3 = rows[1], *a2 = rows[2], *a1 = rows[3], *x = rows[4], *b1 = rows[5], *b2 = rows[6],
              *b3 = rows[7], *b4 = rows[8];
  const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3], w4 = weights[4];
#pragma omp simd
  for (int32_t i = 0; i < size; ++i) {
    out[i] = w0 * x[i] + w1 * (a1[i] + b1[i]) + w2 * (a2[i] + b2[i]) + w3 * (a3[i] + b3[i]) + w4 * (a4[i] + b4[i]);
  }
}

WEBSSL_MULTIVERSION
void store_fp32(const float* pixels, int64_t size, float threshold, float scale, float shift, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = solarize(pixels[i], threshold) * scale + shift;
}

WEBSSL_MULTIVERSION
void store_bf16(const float* pixels, int64_t size, float threshold, float scale, float shift, uint16_t* out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = bfloat16_bits(solarize(pixels[i], threshold) * scale + shift);
}

// ---------------------------------------------------------------- one crop

class CropTask {
 public:
  CropTask(const Params& params, int64_t image, int64_t crop, Scratch* scratch)
      : params_(params),
        scratch_(*scratch),
        image_(params.images_B[image]),
        image_height_(params.image_sizes_B2[2 * image]),
        image_width_(params.image_sizes_B2[2 * image + 1]),
        parameters_(params.parameters_BVP + (image * params.num_crops + crop) * kNumColumns),
        size_(params.sizes_px_V[crop]),
        plane_size_(static_cast<int64_t>(size_) * size_),
        out_offset_(image * 3 * plane_size_),
        out_(params.crops_V[crop]),
        chain_(parameters_) {}

  void run() {
    const bool read_outside = parameters_[kReadOutside] != 0.0f;
    const Axis rows = make_axis(parameters_[kTop], parameters_[kHeight], image_height_, read_outside, size_);
    const Axis columns = make_axis(parameters_[kLeft], parameters_[kWidth], image_width_, read_outside, size_);
    make_taps(rows, size_, false, &scratch_.rows);
    make_taps(columns, size_, parameters_[kFlip] != 0.0f, &scratch_.columns);
    planes_ = scratch_.planes.reserve(3 * plane_size_);
    // Outputs at the border have fewer taps than num_taps, and the last lane of a pixel is no channel: both are read
    // past the end of the row, with zero weight or to be dropped.
    source_size_ = 3 * static_cast<int64_t>(scratch_.columns.source_high - scratch_.columns.source_low);
    const int64_t read_floats = source_size_ + 3 * static_cast<int64_t>(scratch_.columns.num_taps) + 1;
    stride_ = (read_floats + 15) / 16 * 16;  // whole cache lines
    std::fill_n(scratch_.weighed_rows.reserve(kRowsTogether * stride_), kRowsTogether * stride_, 0.0f);
    const int32_t num_window_rows = scratch_.rows.num_taps;
    if (num_window_rows * stride_ <= kWindowFloats) {
      window_.emplace(source_row(0), 3 * static_cast<int64_t>(image_width_), source_size_, num_window_rows, stride_,
                      scratch_.window.reserve(num_window_rows * stride_));
    }

    const int32_t block_rows = std::max(1, kPixelsInCache / size_ / kRowsTogether) * kRowsTogether;
    double gray = 0.0;
    for (int32_t y = 0; y < size_; y += block_rows) {
      const int32_t y_end = std::min(y + block_rows, size_);
      for (int32_t row = y; row < y_end; row += kRowsTogether) {
        resample(row, std::min(row + kRowsTogether, y_end));
      }
      apply_colors(chain_, 0, chain_.contrast_at, parameters_, 0.0f, block(y, y_end));
      if (chain_.has_contrast()) gray += sum_gray(block(y, y_end));
    }
    const float mean_gray = static_cast<float>(gray / static_cast<double>(plane_size_));
    const float sigma = parameters_[kBlurSigma];
    float weights[kBlurRadius + 1];
    if (sigma > 0.0f) blur_weights(sigma, weights);
    for (int32_t y = 0; y < size_; y += block_rows) {
      const int32_t y_end = std::min(y + block_rows, size_);
      apply_colors(chain_, chain_.contrast_at, chain_.num, parameters_, mean_gray, block(y, y_end));
      if (parameters_[kGrayscale] != 0.0f) replace_with_gray(block(y, y_end));
      if (sigma > 0.0f) {
        blur_rows(y, y_end, weights);
      } else {
        for (int channel = 0; channel < 3; ++channel) {
          store(channel, y, plane(channel) + static_cast<int64_t>(y) * size_, static_cast<int64_t>(y_end - y) * size_);
        }
      }
    }
    if (sigma > 0.0f) blur_columns_and_store(weights);
  }

 private:
  float* plane(int channel) { return planes_ + channel * plane_size_; }

  Pixels block(int32_t y, int32_t y_end) {
    const int64_t at = static_cast<int64_t>(y) * size_;
    return {plane(0) + at, plane(1) + at, plane(2) + at, static_cast<int64_t>(y_end - y) * size_};
  }

  // From the first column in use.
  const uint8_t* source_row(int32_t source_y) const {
    return image_ + 3 * (static_cast<int64_t>(source_y) * image_width_ + scratch_.columns.source_low);
  }

  // At most kRowsTogether rows of the crop. The vertical pass goes first: it works on whole rows as they lie.
  void resample(int32_t y, int32_t y_end) {
    const Taps& columns = scratch_.columns;
    const int64_t out_stride = 3 * static_cast<int64_t>(size_) + 1;
    float* weighed_rows = scratch_.weighed_rows.reserve(kRowsTogether * stride_);
    float* interleaved = scratch_.interleaved.reserve(kRowsTogether * out_stride);
    for (int32_t row = y; row < y_end; ++row) {
      float* out = weighed_rows + (row - y) * stride_;
      if (window_) {
        window_->advance(scratch_.rows.first[row], scratch_.rows.last[row]);
        weigh_source_rows(row, [&](int32_t source_y) { return window_->row(source_y); }, &scratch_.float_rows, out);
      } else {
        weigh_source_rows(row, [&](int32_t source_y) { return source_row(source_y); }, &scratch_.byte_rows, out);
      }
    }
    weigh_columns(weighed_rows, y_end - y, stride_, columns.source_low, columns.first.data(), columns.weights.data(),
                  columns.num_taps, size_, interleaved, out_stride);
    for (int32_t row = y; row < y_end; ++row) {
      const Pixels out = block(row, row + 1);
      split_channels(interleaved + (row - y) * out_stride, size_, out.r, out.g, out.b);
    }
  }

  template <typename Source, typename SourceRow>
  void weigh_source_rows(int32_t row, SourceRow source_row, std::vector<const Source*>* pointers, float* out) {
    const Taps& rows = scratch_.rows;
    pointers->resize(rows.num_taps);
    for (int32_t k = 0; k < rows.num_taps; ++k) {
      (*pointers)[k] = source_row(std::min(rows.first[row] + k, rows.last[row] - 1));
    }
    const float* weights = rows.weights.data() + static_cast<int64_t>(row) * rows.num_taps;
    weigh_rows(pointers->data(), weights, rows.num_taps, source_size_, out);
  }

  void blur_rows(int32_t y, int32_t y_end, const float* weights) {
    float* padded = scratch_.padded.reserve(size_ + 2 * kBlurRadius);
    for (int channel = 0; channel < 3; ++channel) {
      for (int32_t row = y; row < y_end; ++row) {
        float* pixels = plane(channel) + static_cast<int64_t>(row) * size_;
        for (int i = 1; i <= kBlurRadius; ++i) {
          padded[kBlurRadius - i] = pixels[reflect(-i, size_)];
          padded[kBlurRadius + size_ - 1 + i] = pixels[reflect(size_ - 1 + i, size_)];
        }
        std::copy(pixels, pixels + size_, padded + kBlurRadius);
        blur_row(padded, weights, size_, pixels);
      }
    }
  }

  void blur_columns_and_store(const float* weights) {
    float* blurred = scratch_.blurred.reserve(size_);
    for (int channel = 0; channel < 3; ++channel) {
      for (int32_t y = 0; y < size_; ++y) {
        const float* rows[2 * kBlurRadius + 1];
        for (int i = -kBlurRadius; i <= kBlurRadius; ++i) {
          rows[i + kBlurRadius] = plane(channel) + static_cast<int64_t>(reflect(y + i, size_)) * size_;
        }
        blur_columns(rows, weights, size_, blurred);
        store(channel, y, blurred, size_);
      }
    }
  }

  // Solarises, normalises and writes `size` pixels of one channel, from the start of row y.
  void store(int channel, int32_t y, const float* pixels, int64_t size) {
    const float scale = 1.0f / (255.0f * params_.std_3[channel]);
    const float shift = -params_.mean_3[channel] / params_.std_3[channel];
    const float threshold = parameters_[kSolarizeThreshold];
    const int64_t at = out_offset_ + channel * plane_size_ + static_cast<int64_t>(y) * size_;
    if (params_.bfloat16) {
      store_bf16(pixels, size, threshold, scale, shift, static_cast<uint16_t*>(out_) + at);
    } else {
      store_fp32(pixels, size, threshold, scale, shift, static_cast<float*>(out_) + at);
    }
  }

  const Params& params_;
  Scratch& scratch_;
  const uint8_t* image_;
  const int32_t image_height_, image_width_;
  const float* parameters_;
  const int32_t size_;
  const int64_t plane_size_, out_offset_;
  void* out_;
  const ColorChain chain_;
  float* planes_ = nullptr;
  int64_t source_size_ = 0, stride_ = 0;  // floats of a source row in use, and from one to the next
  std::optional<RowWindow> window_;       // none where it would be too large: then rows are read as bytes
};

}  // namespace

void multi_crop_cpu(const Params& params) {
  // Image by image, not crop by crop: an image then stays in the cache for all of its crops. Recipes list their large
  // crops first, so the last tasks are small ones and the threads end together.
  parallel_for(params.num_crops * params.num_images, params.num_threads, [&](int64_t task) {
    thread_local Scratch scratch;
    CropTask(params, task / params.num_crops, task % params.num_crops, &scratch).run();
  });
}

void multi_crop_cpu_at(uintptr_t images_B, uintptr_t image_sizes_B2, uintptr_t parameters_BVP, uintptr_t sizes_px_V,
                       uintptr_t crops_V, int64_t num_images, int64_t num_crops, uintptr_t mean_3, uintptr_t std_3,
                       bool bfloat16, int num_threads) {
  multi_crop_cpu({reinterpret_cast<const uint8_t* const*>(images_B), reinterpret_cast<const int32_t*>(image_sizes_B2),
                  reinterpret_cast<const float*>(parameters_BVP), reinterpret_cast<const int32_t*>(sizes_px_V),
                  reinterpret_cast<void* const*>(crops_V), num_images, num_crops,
                  reinterpret_cast<const float*>(mean_3), reinterpret_cast<const float*>(std_3), bfloat16,
                  num_threads});
}

void draw_crop_parameters_at(uintptr_t image_sizes_B2, uintptr_t recipes_VR, uint64_t seed, uintptr_t positions_B,
                             int64_t num_images, int64_t num_crops, uintptr_t parameters_BVP) {
  const int32_t* sizes = reinterpret_cast<const int32_t*>(image_sizes_B2);
  const Recipe* recipes = reinterpret_cast<const Recipe*>(recipes_VR);
  const int64_t* positions = reinterpret_cast<const int64_t*>(positions_B);
  float* out = reinterpret_cast<float*>(parameters_BVP);
  for (int64_t image = 0; image < num_images; ++image) {
    for (int64_t crop = 0; crop < num_crops; ++crop, out += kNumColumns) {
      const CropKey key{seed, static_cast<uint64_t>(positions[image]), static_cast<uint32_t>(crop)};
      draw_parameters(key, recipes[crop], sizes[2 * image], sizes[2 * image + 1], out);
    }
  }
}

}  // namespace multi_crop
}  // namespace webssl
