// exp in fp32, written so that compilers vectorise it: libm's expf is a call per element.
#pragma once

#include "core/bits.h"
#include "core/host_device.h"

namespace webssl {

// Relative error at most 1.1e-7 on [-87, 88]. The argument is clamped to that range, so that results are normal
// numbers: at least 1.6e-38 (in place of 0) and at most 1.7e38. NaN stays NaN.
//
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2 (Cody and Waite: ln 2 in two parts keeps r exact);
// exp(r) = 1 + r + r^2 P(r) with P of degree 4, relative minimax error 3e-9 before rounding.
//
// An object, to be made outside of the loop: GCC folds the tail of the formula for constant bounds, and a clamp becomes
// compares and masked moves (a quarter slower) where a bound that it cannot see becomes one min or max.
class Exp {
 public:
  WEBSSL_HD Exp() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
    __asm__("" : "+x"(lowest_), "+x"(highest_));
#endif
  }

  WEBSSL_HD float operator()(float x) const {
    x = x < lowest_ ? lowest_ : x;
    x = x > highest_ ? highest_ : x;
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum: n + 127, the exponent field
    // of 2^n.
    constexpr float kRound = 0x1.8p+23f + 127.0f;
    const float shifted = x * 0x1.715476p+0f + kRound;
    const float n = shifted - kRound;
    float r = x - n * 0x1.62e4p-1f;
    r = r - n * 0x1.7f7d1cp-20f;
    float p = 0x1.6a23dp-10f;
    p = p * r + 0x1.123a2p-7f;
    p = p * r + 0x1.5558f2p-5f;
    p = p * r + 0x1.555492p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    // A product, not a sum of bits: that would turn some NaN into numbers.
    return p * float_from_bits(bits_from_float(shifted) << 23);
  }

 private:
  float lowest_ = -87.0f;
  float highest_ = 88.0f;
};

}  // namespace webssl
