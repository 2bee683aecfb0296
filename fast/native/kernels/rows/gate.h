// The gated product between the linears of an MLP (SwiGLU, arXiv 2002.05202).
#pragma once

#include "../table.h"
#include "../vector/functions.h"

namespace planish::PLANISH_ISA {

// y = silu(gate) * up
template <class V>
void gate(const float* gate, const float* up, int64_t stride, float* y, int64_t y_stride,
          int64_t rows, int64_t count) {
  for (int64_t row = 0; row < rows; ++row, gate += stride, up += stride, y += y_stride) {
    int64_t i = 0;
    for (; i + kTile <= count; i += kTile) {
      V::store(y + i, V::multiply(silu<V>(V::load(gate + i)), V::load(up + i)));
    }
    const int64_t left = count - i;
    if (left == 0) continue;
    const auto last = silu<V>(V::load_part(gate + i, left));
    V::store_part(y + i, V::multiply(last, V::load_part(up + i, left)), left);
  }
}

}  // namespace planish::PLANISH_ISA
