// What CPU and CUDA share of multi_crop: the random draws and the scalar formula of each image operation.
// Pixels are floats in [0, 255]; turns of hue in [0, 1).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "core/philox.h"

namespace webssl {
namespace multi_crop {

// ---------------------------------------------------------------- parameters

// Columns of parameters_BVP; webssl_fast/ops/multi_crop.py documents them and must agree.
enum Column {
  kTop,
  kLeft,
  kHeight,
  kWidth,
  kReadOutside,
  kFlip,
  kBrightness,
  kContrast,
  kSaturation,
  kHue,
  kOrder,  // four columns: the color operations, first to last
  kGrayscale = kOrder + 4,
  kBlurSigma,
  kSolarizeThreshold,
  kNumColumns
};

// Values of the kOrder columns.
enum ColorOperation { kApplyBrightness, kApplyContrast, kApplySaturation, kApplyHue, kNumColorOperations };

// What one crop is drawn from; the fields of records.CropRecipe in the order in which Python writes them.
struct Recipe {
  double scale_low, scale_high, ratio_low, ratio_high;
  double flip_probability;
  double jitter_probability, brightness, contrast, saturation, hue;
  double grayscale_probability;
  double blur_probability, blur_sigma_low, blur_sigma_high;
  double solarize_probability, solarize_threshold;
};

// ---------------------------------------------------------------- random draws

// Operation numbers: the last word of the Philox counter. Changing one changes every run.
enum Draw : uint32_t {
  kDrawBox = 0,  // and the nine that follow, one for each try
  kDrawFlip = 10,
  kDrawJitter = 11,
  kDrawJitterFactors = 12,
  kDrawGrayscale = 13,
  kDrawBlur = 14,
  kDrawSolarize = 15,
};
constexpr int kNumBoxTries = 10;
constexpr float kNoSolarize = 256.0f;

// Draws are made in double: an ulp of difference between two math libraries then almost never moves a box by a pixel.
WEBSSL_HD double uniform(uint32_t bits, double low, double high) { return low + (high - low) * (bits * 0x1p-32); }
WEBSSL_HD bool happens(uint32_t bits, double probability) { return bits * 0x1p-32 < probability; }
WEBSSL_HD uint32_t uniform_below(uint32_t bits, uint32_t bound) {
  return static_cast<uint32_t>((static_cast<uint64_t>(bits) * bound) >> 32);
}

struct CropKey {
  uint64_t seed, position;
  uint32_t crop;
  WEBSSL_HD Philox4 draw(uint32_t operation) const {
    return philox4x32(seed, {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), crop, operation});
  }
};

struct Box {
  int32_t top, left, height, width;
};

WEBSSL_HD int32_t at_least_one(double x) { return x < 1.0 ? 1 : static_cast<int32_t>(x); }

// The distribution of torchvision's RandomResizedCrop: up to ten tries of a uniform share of the area and a log-uniform
// aspect ratio, then the largest centered box whose ratio is allowed. `rint` rounds half to even, as Python's round
// does.
WEBSSL_HD Box draw_box(const CropKey& key, const Recipe& recipe, int32_t height, int32_t width) {
  const double area = static_cast<double>(height) * width;
  const double log_low = log(recipe.ratio_low), log_high = log(recipe.ratio_high);
  for (int attempt = 0; attempt < kNumBoxTries; ++attempt) {
    const Philox4 bits = key.draw(kDrawBox + attempt);
    const double target = area * uniform(bits.x, recipe.scale_low, recipe.scale_high);
    const double ratio = exp(uniform(bits.y, log_low, log_high));
    const double w = rint(sqrt(target * ratio)), h = rint(sqrt(target / ratio));
    if (w >= 1 && w <= width && h >= 1 && h <= height) {
      const int32_t box_height = static_cast<int32_t>(h), box_width = static_cast<int32_t>(w);
      return {static_cast<int32_t>(uniform_below(bits.z, height - box_height + 1)),
              static_cast<int32_t>(uniform_below(bits.w, width - box_width + 1)), box_height, box_width};
    }
  }
  const double ratio = static_cast<double>(width) / height;
  int32_t box_height = height, box_width = width;
  if (ratio < recipe.ratio_low) box_height = at_least_one(rint(width / recipe.ratio_low));
  if (ratio > recipe.ratio_high) box_width = at_least_one(rint(height * recipe.ratio_high));
  return {(height - box_height) / 2, (width - box_width) / 2, box_height, box_width};
}

// The index-th of the 24 orders of the color operations (Lehmer code).
WEBSSL_HD void color_order(uint32_t index, float* order) {
  int remaining[kNumColorOperations] = {kApplyBrightness, kApplyContrast, kApplySaturation, kApplyHue};
  uint32_t block = 6;  // orders of the operations that are left after this one
  for (int place = 0; place < kNumColorOperations; ++place) {
    const int chosen = static_cast<int>(index / block);
    index %= block;
    order[place] = static_cast<float>(remaining[chosen]);
    for (int i = chosen; i + 1 < kNumColorOperations - place; ++i) remaining[i] = remaining[i + 1];
    if (place < 2) block /= 3 - place;
  }
}

WEBSSL_HD float jitter_factor(uint32_t bits, double strength) {
  const double low = strength < 1.0 ? 1.0 - strength : 0.0;
  return static_cast<float>(uniform(bits, low, 1.0 + strength));
}

WEBSSL_HD void draw_parameters(const CropKey& key, const Recipe& recipe, int32_t height, int32_t width, float* out) {
  const Box box = draw_box(key, recipe, height, width);
  out[kTop] = static_cast<float>(box.top);
  out[kLeft] = static_cast<float>(box.left);
  out[kHeight] = static_cast<float>(box.height);
  out[kWidth] = static_cast<float>(box.width);
  out[kReadOutside] = 0.0f;
  out[kFlip] = happens(key.draw(kDrawFlip).x, recipe.flip_probability);

  const Philox4 jitter = key.draw(kDrawJitter), factors = key.draw(kDrawJitterFactors);
  const bool jitters = happens(jitter.x, recipe.jitter_probability);
  out[kBrightness] = jitters ? jitter_factor(factors.x, recipe.brightness) : 1.0f;
  out[kContrast] = jitters ? jitter_factor(factors.y, recipe.contrast) : 1.0f;
  out[kSaturation] = jitters ? jitter_factor(factors.z, recipe.saturation) : 1.0f;
  out[kHue] = jitters ? static_cast<float>(uniform(factors.w, -recipe.hue, recipe.hue)) : 0.0f;
  color_order(uniform_below(jitter.y, 24), out + kOrder);

  out[kGrayscale] = happens(key.draw(kDrawGrayscale).x, recipe.grayscale_probability);
  const Philox4 blur = key.draw(kDrawBlur);
  const double sigma = uniform(blur.y, recipe.blur_sigma_low, recipe.blur_sigma_high);
  out[kBlurSigma] = happens(blur.x, recipe.blur_probability) ? static_cast<float>(sigma) : 0.0f;
  const bool solarizes = happens(key.draw(kDrawSolarize).x, recipe.solarize_probability);
  out[kSolarizeThreshold] = solarizes ? static_cast<float>(recipe.solarize_threshold) : kNoSolarize;
}

// ---------------------------------------------------------------- resampling

constexpr double kCubicSupport = 2.0;

// Keys' cubic convolution with a = -0.5, as Pillow's BICUBIC; zero from |x| = 2 on.
WEBSSL_HD float cubic_weight(float x) {
  x = fabsf(x);
  const float inner = (1.5f * x - 2.5f) * x * x + 1.0f;
  const float outer = ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f;
  return x < 1.0f ? inner : (x < 2.0f ? outer : 0.0f);
}

// One axis of the resampling: `size` outputs from [begin, begin + length) of the source, reading source pixels of
// [limit_low, limit_high) only. When shrinking, the filter is stretched by the scale (antialiasing), as Pillow does.
struct Axis {
  double begin, scale, filter_scale, support;
  int32_t limit_low, limit_high;
};

WEBSSL_HD Axis make_axis(float begin, float length, int32_t source_size, bool read_outside, int32_t size) {
  Axis axis;
  axis.begin = begin;
  axis.scale = static_cast<double>(length) / size;
  axis.filter_scale = axis.scale > 1.0 ? axis.scale : 1.0;
  axis.support = kCubicSupport * axis.filter_scale;
  const double low = read_outside ? 0.0 : floor(static_cast<double>(begin));
  const double high = read_outside ? source_size : ceil(static_cast<double>(begin) + length);
  axis.limit_low = low < 0.0 ? 0 : (low > source_size - 1 ? source_size - 1 : static_cast<int32_t>(low));
  axis.limit_high = high > source_size ? source_size : static_cast<int32_t>(high);
  if (axis.limit_high <= axis.limit_low) axis.limit_high = axis.limit_low + 1;
  return axis;
}

WEBSSL_HD double tap_center(const Axis& axis, int32_t output) { return axis.begin + (output + 0.5) * axis.scale; }

// Source pixels [first, last) that one output reads; never empty.
struct TapRange {
  int32_t first, last;
};

WEBSSL_HD TapRange tap_range(const Axis& axis, double center) {
  const double low = center - axis.support + 0.5, high = center + axis.support + 0.5;
  int32_t first = low < axis.limit_low ? axis.limit_low : static_cast<int32_t>(low);
  if (first > axis.limit_high - 1) first = axis.limit_high - 1;
  int32_t last = high > axis.limit_high ? axis.limit_high : static_cast<int32_t>(high);
  if (last <= first) last = first + 1;
  return {first, last};
}

// Tap k of an output, source pixel first + k, weighs cubic_weight(tap_offset + k / filter_scale), divided by the sum of
// its output's weights.
WEBSSL_HD float tap_offset(const Axis& axis, int32_t output, int32_t first) {
  return static_cast<float>((first + 0.5 - tap_center(axis, output)) / axis.filter_scale);
}
WEBSSL_HD float tap_step(const Axis& axis) { return static_cast<float>(1.0 / axis.filter_scale); }

// ---------------------------------------------------------------- colors

// ITU-R 601-2 luma, as Pillow's convert("L").
WEBSSL_HD float luma(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }

// To [0, most].
WEBSSL_HD float clamp(float x, float most) {
  x = x > 0.0f ? x : 0.0f;
  return x < most ? x : most;
}

WEBSSL_HD float clamp_pixel(float x) { return clamp(x, 255.0f); }

// Pillow rounds down after a blend and in HSV. Pixels here stay floats and lose what rounding down costs on average.
constexpr float kRoundedDown = 0.5f;

// ImageEnhance: from the degenerate image (black, the mean gray, the pixel's own gray) through the image and beyond.
WEBSSL_HD float blend(float degenerate, float x, float factor) {
  return clamp_pixel(degenerate + factor * (x - degenerate) - kRoundedDown);
}

// torchvision shifts Pillow's H channel, 255 steps to the turn, by whole steps, and wraps at 256 of them.
constexpr float kHuePeriod = 6.0f * 256.0f / 255.0f;  // in sixths of a turn

WEBSSL_HD float hue_shift_in_sixths(float turns) { return 6.0f / 255.0f * (truncf(turns * 255.0f) - kRoundedDown); }

// Shifts the hue of a pixel in HSV by at most a turn; value and saturation stay. Free of branches, and of divisions:
// the hue is measured in sixths of a turn times the chroma, so gray pixels need no care.
WEBSSL_HD void shift_hue(float& r, float& g, float& b, float shift_in_sixths) {
  const float high = r > g ? (r > b ? r : b) : (g > b ? g : b);
  const float low = r < g ? (r < b ? r : b) : (g < b ? g : b);
  const float chroma = high - low, period = kHuePeriod * chroma;
  float hue = high == r ? g - b : (high == g ? b - r + 2.0f * chroma : r - g + 4.0f * chroma);
  // The wrap makes hues just below zero jump. Half a level of slack keeps reds with g = b, which are common, from
  // hanging on rounding errors; in Pillow's integers they have hue zero.
  hue = (hue < -0.5f ? hue + 6.0f * chroma : hue) + shift_in_sixths * chroma;
  hue = hue < 0.0f ? hue + period : hue;
  hue = hue >= period ? hue - period : hue;
  r = low + clamp(fabsf(hue - 3.0f * chroma) - chroma, chroma);
  g = low + clamp(2.0f * chroma - fabsf(hue - 2.0f * chroma), chroma);
  b = low + clamp(2.0f * chroma - fabsf(hue - 4.0f * chroma), chroma);
}

// The drawn color operations of one crop that change anything, in order.
struct ColorChain {
  uint32_t packed = 0;  // four bits an operation: an array would leave a GPU's registers
  int num = 0;
  int contrast_at = kNumColorOperations;  // place of the contrast operation; num where there is none

  WEBSSL_HD explicit ColorChain(const float* parameters) {
    for (int place = 0; place < kNumColorOperations; ++place) {
      const int operation = static_cast<int>(parameters[kOrder + place]);
      const float neutral = operation == kApplyHue ? 0.0f : 1.0f;
      if (parameters[kBrightness + operation] == neutral) continue;
      if (operation == kApplyContrast) contrast_at = num;
      packed |= static_cast<uint32_t>(operation) << (4 * num++);
    }
    if (contrast_at > num) contrast_at = num;
  }

  WEBSSL_HD int operation(int place) const { return static_cast<int>((packed >> (4 * place)) & 15u); }
  WEBSSL_HD bool has_contrast() const { return contrast_at < num; }
};

WEBSSL_HD float solarize(float x, float threshold) { return x < threshold ? x : 255.0f - x; }

// ---------------------------------------------------------------- blur

constexpr int kBlurRadius = 4;  // torchvision's GaussianBlur(kernel_size=9)

// Weights at distance 0 to kBlurRadius of the center, normalised over all nine taps.
WEBSSL_HD void blur_weights(float sigma, float* weights) {
  double sum = 0.0, raw[kBlurRadius + 1];
  for (int i = 0; i <= kBlurRadius; ++i) {
    const double x = i / static_cast<double>(sigma);
    raw[i] = exp(-0.5 * x * x);
    sum += i == 0 ? raw[i] : 2.0 * raw[i];
  }
  for (int i = 0; i <= kBlurRadius; ++i) weights[i] = static_cast<float>(raw[i] / sum);
}

// Reflection that does not repeat the border pixel: -1 -> 1. Defined for any size.
WEBSSL_HD int32_t reflect(int32_t index, int32_t size) {
  if (index >= 0 && index < size) return index;
  if (size == 1) return 0;
  const int32_t period = 2 * (size - 1);
  index %= period;
  if (index < 0) index += period;
  return index < size ? index : period - index;
}

// ---------------------------------------------------------------- output

// Round to nearest even. The pixels are finite, so NaN needs no care.
WEBSSL_HD uint16_t bfloat16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace multi_crop
}  // namespace webssl
