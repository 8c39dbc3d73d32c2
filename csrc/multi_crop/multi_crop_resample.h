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

constexpr int kTapBlock = 2;  // taps of a pair of rows are padded with zero weights to a multiple of this

// Weights of one axis: output i reads source pixels first[i] + k with weights[i * num_taps + k].
struct Taps {
  int32_t num_taps = 0;
  int32_t source_low = 0, source_high = 0;  // range of source pixels that carry weight
  std::vector<int32_t> first, last;
  std::vector<float> weights;
};

WEBSSL_MULTIVERSION
void fill_weights(const Axis& axis, int32_t size, const int32_t* first, const int32_t* last, int32_t num_taps,
                  float* weights) {
  const float step = static_cast<float>(1.0 / axis.filter_scale);
  for (int32_t i = 0; i < size; ++i) {
    const float offset = static_cast<float>((first[i] + 0.5 - tap_center(axis, i)) / axis.filter_scale);
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
  taps->num_taps = (longest + 1) / 2 * 2;  // weigh_columns takes two at a time
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

// a[i] = sum over k of weights_a[k] * rows[k][i], and the same for b; num_taps is a multiple of kTapBlock. Two output
// rows read almost the same source rows, and turning uint8 into float costs twice what the product does.
WEBSSL_MULTIVERSION
void weigh_rows(const uint8_t* const* rows, const float* weights_a, const float* weights_b, int32_t num_taps,
                int64_t size, float* a, float* b) {
  int32_t k = 0;
  for (; k + 4 <= num_taps; k += 4) {
    const uint8_t *r0 = rows[k], *r1 = rows[k + 1], *r2 = rows[k + 2], *r3 = rows[k + 3];
    const float a0 = weights_a[k], a1 = weights_a[k + 1], a2 = weights_a[k + 2], a3 = weights_a[k + 3];
    const float b0 = weights_b[k], b1 = weights_b[k + 1], b2 = weights_b[k + 2], b3 = weights_b[k + 3];
    if (k == 0) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const float p0 = r0[i], p1 = r1[i], p2 = r2[i], p3 = r3[i];
        a[i] = a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3;
        b[i] = b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3;
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) {
        const float p0 = r0[i], p1 = r1[i], p2 = r2[i], p3 = r3[i];
        a[i] += a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3;
        b[i] += b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3;
      }
    }
  }
  if (k == num_taps) return;
  const uint8_t *r0 = rows[k], *r1 = rows[k + 1];
  const float a0 = weights_a[k], a1 = weights_a[k + 1], b0 = weights_b[k], b1 = weights_b[k + 1];
  if (k == 0) {
    std::fill_n(a, size, 0.0f);
    std::fill_n(b, size, 0.0f);
  }
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float p0 = r0[i], p1 = r1[i];
    a[i] += a0 * p0 + a1 * p1;
    b[i] += b0 * p0 + b1 * p1;
  }
}

// Red, green, blue, and one lane that is ignored.
typedef float Float4 __attribute__((vector_size(16)));

// Resamples an interleaved row that starts at source pixel `source_low`. Reads up to num_taps pixels and writes one
// float beyond the ends.
WEBSSL_MULTIVERSION
void weigh_columns(const float* row, int32_t source_low, const int32_t* first, const float* weights, int32_t num_taps,
                   int32_t size, float* out) {
  for (int32_t i = 0; i < size; ++i) {
    const float* source = row + 3 * static_cast<int64_t>(first[i] - source_low);
    const float* w = weights + static_cast<int64_t>(i) * num_taps;
    Float4 sum = {0, 0, 0, 0}, odd = {0, 0, 0, 0};
    for (int32_t k = 0; k < num_taps; k += 2) {
      Float4 a, b;
      memcpy(&a, source + 3 * k, sizeof(a));
      memcpy(&b, source + 3 * k + 3, sizeof(b));
      sum += a * w[k];
      odd += b * w[k + 1];
    }
    sum += odd;
    memcpy(out + 3 * static_cast<int64_t>(i), &sum, sizeof(sum));
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
