// bfloat16 as storage: values are widened to fp32 when read and rounded to nearest even when written.
#pragma once

#include <cstdint>

#include "core/bits.h"
#include "core/host_device.h"

namespace webssl {

struct Bfloat16 {
  uint16_t bits;
};

WEBSSL_HD float load_f32(const float* p) { return *p; }
WEBSSL_HD float load_f32(const Bfloat16* p) { return float_from_bits(static_cast<uint32_t>(p->bits) << 16); }

// A run of values as fp32: the values themselves, or their widening into `buffer`. Loops with wide bodies run over it,
// since GCC halves the vectors of a loop that mixes 16-bit and 32-bit elements.
WEBSSL_HD const float* widened(const float* values, int64_t, float*) { return values; }
WEBSSL_HD const float* widened(const Bfloat16* values, int64_t size, float* buffer) {
#pragma omp simd simdlen(32)
  for (int64_t i = 0; i < size; ++i) buffer[i] = load_f32(values + i);
  return buffer;
}

WEBSSL_HD void store_f32(float* p, float value) { *p = value; }
WEBSSL_HD void store_f32(Bfloat16* p, float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// Two values rounded to bf16 in one register, as the tensor cores' fragments hold them: `low` in the lower half.
WEBSSL_HD uint32_t packed_bfloat16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  Bfloat16 values[2];
  store_f32(&values[0], low);
  store_f32(&values[1], high);
  return static_cast<uint32_t>(values[1].bits) << 16 | values[0].bits;
#endif
}

}  // namespace webssl
