// The router logits of a row, and the weighted sum of its experts' outputs.
#pragma once

#include "../table.h"
#include "../vector/unroll.h"

namespace planish::PLANISH_ISA {

constexpr int kScoredRows = 4;  // that share what is loaded of an expert's weights

// y[r, 0] = sum_k x[r, k] w[k] of R rows.
template <class V, int R>
PLANISH_INLINE inline void score_block(const float* x, int64_t stride, const float* w,
                                       int64_t inputs, float* y, int64_t experts) {
  typename V::Floats sums[R * 4];
  unroll<R * 4>([&](auto i) PLANISH_INLINE { sums[i] = V::floats(0.0f); });
  int64_t k = 0;
  for (; k + 4 * kTile <= inputs; k += 4 * kTile) {
    unroll<4>([&](auto i) PLANISH_INLINE {
      const int64_t at = k + i * kTile;
      __builtin_prefetch(reinterpret_cast<const uint8_t*>(w + at) + kAhead);
      const auto weight = V::load(w + at);
      unroll<R>([&](auto r) PLANISH_INLINE {
        sums[r * 4 + i] = V::fma(V::load(x + r * stride + at), weight, sums[r * 4 + i]);
      });
    });
  }
  for (; k < inputs; k += kTile) {
    const int64_t left = inputs - k;
    const auto weight = left >= kTile ? V::load(w + k) : V::load_part(w + k, left);
    unroll<R>([&](auto r) PLANISH_INLINE {
      sums[r * 4] = V::fma(V::load(x + r * stride + k), weight, sums[r * 4]);
    });
  }
  unroll<R>([&](auto r) PLANISH_INLINE {
    const auto low = V::add(sums[r * 4], sums[r * 4 + 1]);
    y[r * experts] = V::sum(V::add(low, V::add(sums[r * 4 + 2], sums[r * 4 + 3])));
  });
}

// y[r, n] = sum_k x[r, k] w[n, k] of experts first..last; x [rows, stride], zeros after the inputs.
template <class V>
void score_experts(const float* x, int64_t stride, int64_t rows, const float* w, int64_t inputs,
                   int64_t first, int64_t last, float* y, int64_t experts) {
  int64_t r = 0;
  for (; r + kScoredRows <= rows; r += kScoredRows) {
    for (int64_t n = first; n < last; ++n) {
      score_block<V, kScoredRows>(x + r * stride, stride, w + n * inputs, inputs,
                                  y + r * experts + n, experts);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t n = first; n < last; ++n) {
      score_block<V, 1>(x + r * stride, stride, w + n * inputs, inputs, y + r * experts + n,
                        experts);
    }
  }
}

// y = residual + ((0 + weights[0] * outputs[0]) + weights[1] * outputs[1] ..), `count` columns.
template <class V>
void weighted_sum(const float* const* outputs, const float* weights, int64_t experts,
                  const float* residual, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kTile) {
    const int64_t left = count - i;
    const bool full = left >= kTile;
    auto load = [&](const float* p) { return full ? V::load(p + i) : V::load_part(p + i, left); };
    auto sum = V::floats(0.0f);
    for (int64_t e = 0; e < experts; ++e) {
      sum = V::add(sum, V::multiply(V::floats(weights[e]), load(outputs[e])));
    }
    if (residual) sum = V::add(load(residual), sum);
    if (full) V::store(y + i, sum);
    else V::store_part(y + i, sum, left);
  }
}

}  // namespace planish::PLANISH_ISA
