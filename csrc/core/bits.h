// Reinterprets fp32 as its bits and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace webssl {

WEBSSL_HD float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

WEBSSL_HD uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

}  // namespace webssl
