// Products of rows with float weights [N, K].
//
// Lane j of 16 adds the products of inputs j, j + 16, .. in order, each by a fused addition; then
// the lanes are added. So a row's result does not depend on the others.
#pragma once

#include "../table.h"
#include "../vector/unroll.h"

namespace planish::PLANISH_ISA {

constexpr int kDenseOutputs = 4;  // computed together,
constexpr int kDenseRows = 4;     // by as many rows

// y[r, n] of R rows and C outputs. x [R, stride], zeros after the inputs; w [C, inputs].
template <class V, int R, int C>
PLANISH_INLINE inline void dense_block(const float* x, int64_t stride, const float* w,
                                       int64_t inputs, float* y, int64_t outputs) {
  typename V::Floats sums[R * C];
  unroll<R * C>([&](auto i) PLANISH_INLINE { sums[i] = V::floats(0.0f); });
  const auto add = [&](int64_t k, auto load) PLANISH_INLINE {
    typename V::Floats weights[C];
    unroll<C>([&](auto c) PLANISH_INLINE { weights[c] = load(w + c * inputs + k); });
    unroll<R>([&](auto r) PLANISH_INLINE {
      const auto row = V::load(x + r * stride + k);
      unroll<C>([&](auto c)
                    PLANISH_INLINE { sums[r * C + c] = V::fma(row, weights[c], sums[r * C + c]); });
    });
  };
  int64_t k = 0;
  for (; k + kTile <= inputs; k += kTile) {
    add(k, [](const float* p) PLANISH_INLINE { return V::load(p); });
  }
  if (const int64_t left = inputs - k; left > 0) {
    add(k, [left](const float* p) PLANISH_INLINE { return V::load_part(p, left); });
  }
  unroll<R * C>([&](auto i) PLANISH_INLINE { y[i / C * outputs + i % C] = V::sum(sums[i]); });
}

template <class V, int C>
void dense_rows(const float* x, int64_t stride, int64_t rows, const float* w, int64_t inputs,
                float* y, int64_t outputs) {
  int64_t r = 0;
  for (; r + kDenseRows <= rows; r += kDenseRows) {
    dense_block<V, kDenseRows, C>(x + r * stride, stride, w, inputs, y + r * outputs, outputs);
  }
  for (; r < rows; ++r) {
    dense_block<V, 1, C>(x + r * stride, stride, w, inputs, y + r * outputs, outputs);
  }
}

// y[r, n] = sum_k x[r, k] w[n, k] of outputs first..last; x [rows, stride], y [rows, outputs].
template <class V>
void dense(const float* x, int64_t stride, int64_t rows, const float* w, int64_t inputs,
           int64_t first, int64_t last, float* y, int64_t outputs) {
  int64_t n = first;
  for (; n + kDenseOutputs <= last; n += kDenseOutputs) {
    dense_rows<V, kDenseOutputs>(x, stride, rows, w + n * inputs, inputs, y + n, outputs);
  }
  for (; n < last; ++n) dense_rows<V, 1>(x, stride, rows, w + n * inputs, inputs, y + n, outputs);
}

}  // namespace planish::PLANISH_ISA
