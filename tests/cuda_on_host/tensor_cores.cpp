// The products of the tensor cores and the loads that feed them; layouts of fragments: csrc/core/mma.cuh.
#include <cstring>

#include "emulation.h"

namespace cuda_on_host {
namespace {

float widened(uint32_t pair, int half) { return bits_as<float>(half == 0 ? pair << 16 : pair & 0xFFFF0000u); }

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Data {
    float* d;
    const uint32_t *a, *b;
  } data{d, a, b};
  call_with_warp(
      ~0u,
      [](unsigned, void* const* lanes) {
        float a[16][16], b[16][8];
        for (int i = 0; i < 32; ++i) {
          const auto* data = static_cast<const Data*>(lanes[i]);
          const int g = i / 4, t = i % 4;
          for (int half = 0; half < 2; ++half) {
            for (int part = 0; part < 4; ++part) {
              a[g + 8 * (part % 2)][2 * t + half + 8 * (part / 2)] = widened(data->a[part], half);
            }
            for (int part = 0; part < 2; ++part) b[2 * t + half + 8 * part][g] = widened(data->b[part], half);
          }
        }
        for (int i = 0; i < 32; ++i) {
          for (int part = 0; part < 4; ++part) {
            const int row = i / 4 + 8 * (part / 2), column = 2 * (i % 4) + part % 2;
            float sum = 0.0f;
            for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            static_cast<Data*>(lanes[i])->d[part] += sum;
          }
        }
      },
      &data);
}

void load_matrices(uint32_t* r, int num_matrices, bool transposed, const void* shared) {
  struct Data {
    uint32_t* r;
    int num_matrices;
    bool transposed;
    const void* shared;
  } data{r, num_matrices, transposed, shared};
  if (lane() < 8 * num_matrices) check_aligned(shared, "ldmatrix");
  call_with_warp(
      ~0u,
      [](unsigned, void* const* lanes) {
        const auto element = [&](int matrix, int row, int column) -> uint32_t {
          uint16_t value;
          const auto* address = static_cast<const Data*>(lanes[8 * matrix + row])->shared;
          memcpy(&value, static_cast<const uint16_t*>(address) + column, sizeof(value));
          return value;
        };
        for (int i = 0; i < 32; ++i) {
          const auto* data = static_cast<const Data*>(lanes[i]);
          const int g = i / 4, t = 2 * (i % 4);
          for (int j = 0; j < data->num_matrices; ++j) {
            data->r[j] = data->transposed ? element(j, t, g) | element(j, t + 1, g) << 16
                                          : element(j, g, t) | element(j, g, t + 1) << 16;
          }
        }
      },
      &data);
}

}  // namespace cuda_on_host
