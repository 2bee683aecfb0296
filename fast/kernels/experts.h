// The outputs of a row's experts added up by their shares.
#pragma once

#include "kernels.h"

namespace planish::PLANISH_ISA {

// y = residual + ((0 + shares[0] * parts[0]) + shares[1] * parts[1] ..), `count` columns.
template <class V>
void weigh(const float* const* parts, const float* shares, int64_t experts, const float* residual,
           float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kTile) {
    const int64_t left = count - i;
    const bool full = left >= kTile;
    auto load = [&](const float* p) { return full ? V::load(p + i) : V::load_part(p + i, left); };
    auto sum = V::floats(0.0f);
    for (int64_t e = 0; e < experts; ++e) {
      sum = V::add(sum, V::multiply(V::floats(shares[e]), load(parts[e])));
    }
    if (residual) sum = V::add(load(residual), sum);
    if (full) V::store(y + i, sum);
    else V::store_part(y + i, sum, left);
  }
}

}  // namespace planish::PLANISH_ISA
