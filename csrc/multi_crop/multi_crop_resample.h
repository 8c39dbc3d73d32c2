// Antialiased bicubic resampling on the CPU. For multi_crop_cpu.cpp alone: the functions have internal linkage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/host_device.h"
#include "multi_crop/multi_crop_math.h"

namespace webssl {
namespace multi_crop {
namespace {

constexpr int kRowsTogether = 8;                   // crop rows that share the reading of column weights
constexpr int64_t kWindowFloats = 256 * 1024 / 4;  // a larger RowWindow would crowd the L2 cache: slower than bytes

// Weights of one axis: output i reads source pixels first[i] + k with weights[i * num_taps + k], zero from last[i] on.
struct Taps {
  int32_t num_taps = 0;
  int32_t source_low = 0, source_high = 0;  // range of source pixels that carry weight
  std::vector<int32_t> first, last;
  std::vector<float> weights;
};

WEBSSL_MULTIVERSION
void fill_weights(const Axis& axis, int32_t size, const int32_t* first, const int32_t* last, int32_t num_taps,
                  float* weights) {
  const float step = tap_step(axis);
  for (int32_t i = 0; i < size; ++i) {
    const float offset = tap_offset(axis, i, first[i]);
    const int32_t count = last[i] - first[i];
    float* w = weights + static_cast<int64_t>(i) * num_taps;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int32_t k = 0; k < num_taps; ++k) {
      w[k] = k < count ? cubic_weight(offset + step * k) : 0.0f;
      sum += w[k];
    }
    const float inverse = 1.0f / sum;
    for (int32_t k = 0; k < num_taps; ++k) w[k] *= inverse;
  }
}

void make_taps(const Axis& axis, int32_t size, bool mirrored, Taps* taps) {
  taps->first.resize(size);
  taps->last.resize(size);
  int32_t longest = 0;
  for (int32_t i = 0; i < size; ++i) {
    const TapRange range = tap_range(axis, tap_center(axis, i));
    taps->first[i] = range.first;
    taps->last[i] = range.last;
    longest = std::max(longest, range.last - range.first);
  }
  taps->num_taps = longest;
  taps->source_low = taps->first.front();
  taps->source_high = taps->last.back();
  taps->weights.resize(static_cast<int64_t>(size) * taps->num_taps);
  fill_weights(axis, size, taps->first.data(), taps->last.data(), taps->num_taps, taps->weights.data());
  if (!mirrored) return;
  std::reverse(taps->first.begin(), taps->first.end());
  std::reverse(taps->last.begin(), taps->last.end());
  for (int32_t i = 0; i < size / 2; ++i) {
    float* a = taps->weights.data() + static_cast<int64_t>(i) * taps->num_taps;
    float* b = taps->weights.data() + static_cast<int64_t>(size - 1 - i) * taps->num_taps;
    std::swap_ranges(a, a + taps->num_taps, b);
  }
}

WEBSSL_MULTIVERSION
void to_float(const uint8_t* in, int64_t size, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = in[i];
}

// The source rows that the outputs at hand read, as floats and cut to the columns in use. Outputs come in rising order
// and neighbours share most of their taps, so each row is converted once.
class RowWindow {
 public:
  // The source rows are `size` long and `source_stride` apart; `floats` holds num_rows rows, `stride` apart.
  RowWindow(const uint8_t* source, int64_t source_stride, int64_t size, int32_t num_rows, int64_t stride, float* floats)
      : source_(source),
        source_stride_(source_stride),
        size_(size),
        stride_(stride),
        num_rows_(num_rows),
        floats_(floats) {}

  // Makes source rows [first, last) readable, at most num_rows of them; neither bound may fall from call to call.
  void advance(int32_t first, int32_t last) {
    for (next_ = std::max(next_, first); next_ < last; ++next_) {
      to_float(source_ + next_ * source_stride_, size_, floats_ + next_ % num_rows_ * stride_);
    }
  }

  const float* row(int32_t source_y) const { return floats_ + source_y % num_rows_ * stride_; }

 private:
  const uint8_t* source_;
  int64_t source_stride_, size_, stride_;
  int32_t num_rows_;
  float* floats_;
  int32_t next_ = 0;
};

template <int kCount, bool kAdd, typename Source>
WEBSSL_HD void weigh_some_rows(const Source* const* rows, const float* weights, int64_t size, float* out) {
  const Source* r[kCount];
  float w[kCount];
  for (int k = 0; k < kCount; ++k) r[k] = rows[k], w[k] = weights[k];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    float sum = w[0] * r[0][i];
    for (int k = 1; k < kCount; ++k) sum += w[k] * r[k][i];
    out[i] = kAdd ? out[i] + sum : sum;
  }
}

template <typename Source>
WEBSSL_HD void weigh_rows_of(const Source* const* rows, const float* weights, int32_t num_taps, int64_t size,
                             float* out) {
  const int32_t head = (num_taps - 1) % 4 + 1;
  switch (head) {
    case 1:
      weigh_some_rows<1, false>(rows, weights, size, out);
      break;
    case 2:
      weigh_some_rows<2, false>(rows, weights, size, out);
      break;
    case 3:
      weigh_some_rows<3, false>(rows, weights, size, out);
      break;
    default:
      weigh_some_rows<4, false>(rows, weights, size, out);
  }
  for (int32_t k = head; k < num_taps; k += 4) weigh_some_rows<4, true>(rows + k, weights + k, size, out);
}

// out[i] = sum over k of weights[k] * rows[k][i].
WEBSSL_MULTIVERSION
void weigh_rows(const float* const* rows, const float* weights, int32_t num_taps, int64_t size, float* out) {
  weigh_rows_of(rows, weights, num_taps, size, out);
}

WEBSSL_MULTIVERSION
void weigh_rows(const uint8_t* const* rows, const float* weights, int32_t num_taps, int64_t size, float* out) {
  weigh_rows_of(rows, weights, num_taps, size, out);
}

// Red, green, blue, and one lane that is ignored.
typedef float Float4 __attribute__((vector_size(16)));

template <int kRows>
WEBSSL_HD void weigh_columns_of(const float* rows, int64_t row_stride, int32_t source_low, const int32_t* first,
                                const float* weights, int32_t num_taps, int32_t size, float* out, int64_t out_stride) {
  for (int32_t i = 0; i < size; ++i) {
    const float* source = rows + 3 * static_cast<int64_t>(first[i] - source_low);
    const float* w = weights + static_cast<int64_t>(i) * num_taps;
    Float4 sums[kRows] = {};
    for (int32_t k = 0; k < num_taps; ++k) {
      for (int row = 0; row < kRows; ++row) {
        Float4 pixel;
        memcpy(&pixel, source + row * row_stride + 3 * k, sizeof(pixel));
        sums[row] += pixel * w[k];
      }
    }
    for (int row = 0; row < kRows; ++row) {
      memcpy(out + row * out_stride + 3 * static_cast<int64_t>(i), &sums[row], sizeof(sums[row]));
    }
  }
}

// Resamples interleaved rows that start at source pixel `source_low`. Reads up to num_taps pixels and one float beyond
// their ends, and writes one float beyond the ends of the outputs.
WEBSSL_MULTIVERSION
void weigh_columns(const float* rows, int32_t num_rows, int64_t row_stride, int32_t source_low, const int32_t* first,
                   const float* weights, int32_t num_taps, int32_t size, float* out, int64_t out_stride) {
  int32_t y = 0;
  for (; y + kRowsTogether <= num_rows; y += kRowsTogether) {
    weigh_columns_of<kRowsTogether>(rows + y * row_stride, row_stride, source_low, first, weights, num_taps, size,
                                    out + y * out_stride, out_stride);
  }
  for (; y < num_rows; ++y) {
    weigh_columns_of<1>(rows + y * row_stride, row_stride, source_low, first, weights, num_taps, size,
                        out + y * out_stride, out_stride);
  }
}

// Bicubic weights overshoot: the clamp is where Pillow's rounding to uint8 has it.
WEBSSL_MULTIVERSION
void split_channels(const float* interleaved, int32_t size, float* r, float* g, float* b) {
#pragma omp simd
  for (int32_t i = 0; i < size; ++i) {
    r[i] = clamp_pixel(interleaved[3 * i]);
    g[i] = clamp_pixel(interleaved[3 * i + 1]);
    b[i] = clamp_pixel(interleaved[3 * i + 2]);
  }
}

}  // namespace
}  // namespace multi_crop
}  // namespace webssl
