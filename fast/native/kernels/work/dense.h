// How the threads share a linear with float weights: they normalize the rows once, then each takes
// some outputs of all rows.
#pragma once

#include <algorithm>

#include "linears.h"

namespace planish {

constexpr int64_t kDenseUnit = 16;  // outputs that share what a thread reads of the rows

struct Dense {
  const float* weight;    // [N, K]
  const float* bias;      // [N] or null
  const float* residual;  // [rows, N] or null: added last
  int64_t rows, outputs;
  float* y;  // [rows, N]
};

// Outputs first..last: products, + bias, + residual.
inline void dense_unit(const Kernels& kernels, const Dense& d, const float* x, int64_t inputs,
                       int64_t first, int64_t last) {
  const int64_t stride = ceil_div(inputs, kTile) * kTile;
  kernels.dense(x, stride, d.rows, d.weight, inputs, first, last, d.y, d.outputs);
  if (!d.bias && !d.residual) return;
  for (int64_t row = 0; row < d.rows; ++row) {
    for (int64_t n = first; n < last; ++n) {
      float& y = d.y[row * d.outputs + n];
      if (d.bias) y = y + d.bias[n];
      if (d.residual) y = d.residual[row * d.outputs + n] + y;
    }
  }
}

// y = norm(x) Wt + b + residual.
template <class Pool>
void run_dense(const Kernels& kernels, Pool& pool, const Source& source, const Dense& d) {
  const int64_t k = source.inputs, stride = ceil_div(k, kTile) * kTile;
  float* x = scratch<float>(Scratch::kPacked, d.rows * stride);
  run_units(pool, d.rows, d.rows * k,
            [&](int64_t row) { kernels.normalize_row(source, row, x + row * stride); });
  run_units(pool, ceil_div(d.outputs, kDenseUnit), d.rows * d.outputs * k, [&](int64_t unit) {
    const int64_t first = unit * kDenseUnit, last = std::min(first + kDenseUnit, d.outputs);
    dense_unit(kernels, d, x, k, first, last);
  });
}

}  // namespace planish
