// The router logits of a row, and the weighted sum of its experts' outputs.
#pragma once

#include "../table.h"
#include "../vector/unroll.h"

namespace planish::PLANISH_ISA {

// y[n] = sum_k x[k] w[n, k] of outputs first..last, floats; x is padded to a multiple of 16.
template <class V>
void score_experts(const float* x, const float* w, int64_t inputs, int64_t first, int64_t last,
                   float* y) {
  for (int64_t n = first; n < last; ++n) {
    const float* row = w + n * inputs;
    typename V::Floats sums[4];
    unroll<4>([&](auto i) PLANISH_INLINE { sums[i] = V::floats(0.0f); });
    int64_t k = 0;
    for (; k + 4 * kTile <= inputs; k += 4 * kTile) {
      unroll<4>([&](auto i) PLANISH_INLINE {
        const int64_t at = k + i * kTile;
        __builtin_prefetch(reinterpret_cast<const uint8_t*>(row + at) + kAhead);
        sums[i] = V::fma(V::load(x + at), V::load(row + at), sums[i]);
      });
    }
    for (; k < inputs; k += kTile) {
      const int64_t left = inputs - k;
      const auto weight = left >= kTile ? V::load(row + k) : V::load_part(row + k, left);
      sums[0] = V::fma(V::load(x + k), weight, sums[0]);
    }
    y[n] = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
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
