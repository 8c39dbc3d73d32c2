// Scalar formulas and index arithmetic of streaming Sinkhorn-Knopp, shared by CPU and CUDA.
#pragma once

#include "core/host_device.h"
#include "sinkhorn_knopp/sinkhorn_knopp.h"

namespace webssl::sinkhorn_knopp {

// Log of the kernel matrix exp(logits / temperature) once its prototypes are scaled.
WEBSSL_HD float scaled_logit(float logit, float inverse_temperature, float prototype_potential) {
  return logit * inverse_temperature + prototype_potential;
}

template <typename T>
WEBSSL_HD const T* row_data(const Logits& logits, int64_t row) {
  return static_cast<const T*>(logits.data) + row * logits.row_stride;
}

WEBSSL_HD bool takes_part(const Logits& logits, int64_t row) { return !logits.row_mask || logits.row_mask[row]; }

struct RowRange {
  int64_t begin, end;
};

// Part `index` of `count` even parts of the rows.
WEBSSL_HD RowRange partition_rows(RowRange rows, int64_t index, int64_t count) {
  const int64_t size = rows.end - rows.begin;
  return {rows.begin + size * index / count, rows.begin + size * (index + 1) / count};
}

}  // namespace webssl::sinkhorn_knopp
