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

WEBSSL_HD void store_f32(float* p, float value) { *p = value; }
WEBSSL_HD void store_f32(Bfloat16* p, float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

}  // namespace webssl
