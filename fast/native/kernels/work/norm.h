// How the threads share the norm of many rows, where no linear in the same call reads it.
#pragma once

#include <algorithm>
#include <cstring>

#include "linears.h"

namespace planish {

constexpr int64_t kNormFloats = 4096;  // the fewest of one unit: heads are short rows

// Row `row` of the source, normalized, to y [K].
inline void normalize_to(const Kernels& kernels, const Source& source, int64_t row, float* y) {
  const int64_t k = source.inputs;
  if (k % kTile == 0) return kernels.normalize_row(source, row, y);
  float* padded = row_scratch(k);
  kernels.normalize_row(source, row, padded);
  std::memcpy(y, padded, sizeof(float) * k);
}

// y[r] = norm(x[r]) for x, y [rows, K].
template <class Pool>
void run_norm(const Kernels& kernels, Pool& pool, const Source& source, int64_t rows, float* y) {
  const int64_t k = source.inputs, each = std::max<int64_t>(1, kNormFloats / k);
  run_units(pool, ceil_div(rows, each), rows * k, [&](int64_t unit) {
    const int64_t first = unit * each, last = std::min(first + each, rows);
    for (int64_t row = first; row < last; ++row) normalize_to(kernels, source, row, y + row * k);
  });
}

}  // namespace planish
