// Rows read and written in wide pieces. A width of 8 needs addresses that are multiples of 16 bytes; 1 takes any.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/bfloat16.h"
#include "core/host_device.h"

namespace webssl {

constexpr int kWide = 8;

// kWidth neighbouring values as they lie in memory; without a value until `load` or `clear`.
template <typename T, int kWidth>
struct Packed {
  using Part = std::conditional_t<kWidth == kWide, uint4, T>;
  static constexpr int kParts = static_cast<int>(kWidth * sizeof(T) / sizeof(Part));
  Part parts[kParts];

  __device__ __forceinline__ void load(const T* values) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) parts[i] = reinterpret_cast<const Part*>(values)[i];
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kParts; ++i) parts[i] = Part{};
  }

  __device__ __forceinline__ void widen(float (&values)[kWidth]) const {
    T narrow[kWidth];
    memcpy(narrow, parts, sizeof(narrow));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = load_f32(narrow + i);
  }
};

template <int kWidth, typename T>
__device__ __forceinline__ void load_wide(const T* from, float (&values)[kWidth]) {
  Packed<T, kWidth> packed;
  packed.load(from);
  packed.widen(values);
}

template <int kWidth, typename T>
__device__ __forceinline__ void store_wide(T* to, const float (&values)[kWidth]) {
  Packed<T, kWidth> packed;
  T narrow[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) store_f32(narrow + i, values[i]);
  memcpy(packed.parts, narrow, sizeof(narrow));
#pragma unroll
  for (int i = 0; i < Packed<T, kWidth>::kParts; ++i) {
    reinterpret_cast<typename Packed<T, kWidth>::Part*>(to)[i] = packed.parts[i];
  }
}

// Whether rows of num_values values of num_bytes each, row_stride values apart, can be read in pieces of width 8.
inline bool rows_are_wide(uintptr_t rows, int64_t num_bytes, int64_t num_values, int64_t row_stride) {
  return rows % 16 == 0 && row_stride * num_bytes % 16 == 0 && num_values % kWide == 0;
}

}  // namespace webssl
