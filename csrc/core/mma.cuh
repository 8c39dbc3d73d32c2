// Tensor-core products of bf16 tiles and the loads that feed them (sm_80 and up). Fragment layouts: PTX ISA, "Matrix
// Fragments for mma.m16n8k16" and "ldmatrix".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace webssl {

// d += a b for a 16x16, b 16x8, d 16x8; a warp holds each once. A register of a and b holds two bf16, the lower half
// first. With g = lane / 4 and t = lane % 4:
//   a[0], a[1]: row g, g + 8, columns 2t and 2t + 1;  a[2], a[3]: the same rows, columns 2t + 8 and 2t + 9
//   b[0], b[1]: column g, rows 2t and 2t + 1, and 8 further down
//   d[0], d[1]: row g, columns 2t and 2t + 1;  d[2], d[3]: row g + 8
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef WEBSSL_CUDA_ON_HOST
  cuda_on_host::mma_m16n8k16_bf16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Loads kMatrices (1, 2 or 4) 8x8 matrices of 16-bit values: lane 8 j + i passes the address in shared memory, aligned
// to 16 bytes, of row i of matrix j (lanes beyond that are not looked at). r[j] is of matrix j: row lane / 4, columns
// 2 (lane % 4) and the next. Transposed: column lane / 4, rows 2 (lane % 4) and the next.
template <int kMatrices, bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[kMatrices], const void* shared) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#ifdef WEBSSL_CUDA_ON_HOST
  cuda_on_host::load_matrices(r, kMatrices, kTransposed, shared);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kMatrices == 4 && kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2 && kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
  }
#endif
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  load_matrices<4, false>(r, shared);
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared) {
  load_matrices<4, true>(r, shared);
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared) {
  load_matrices<2, false>(r, shared);
}
__device__ __forceinline__ void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* shared) {
  load_matrices<2, true>(r, shared);
}

}  // namespace webssl
