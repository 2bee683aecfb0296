// The gated product between the linears of an MLP (SwiGLU, arXiv 2002.05202).
#pragma once

#include "../table.h"
#include "../vector/functions.h"

namespace planish::PLANISH_ISA {

// y = silu(gate) * up
template <class V>
void gate(const float* gate, const float* up, int64_t stride, const Output& out, int64_t rows,
          int64_t count) {
  float* y = out.y + out.first;
  for (int64_t row = 0; row < rows; ++row, gate += stride, up += stride, y += out.stride) {
    int64_t i = 0;
    for (; i + kTile <= count; i += kTile) {
      const auto value = V::multiply(silu<V>(V::load(gate + i)), V::load(up + i));
      if (out.stream) V::stream(y + i, value);
      else V::store(y + i, value);
    }
    const int64_t left = count - i;
    if (left == 0) continue;
    const auto last = silu<V>(V::load_part(gate + i, left));
    V::store_part(y + i, V::multiply(last, V::load_part(up + i, left)), left);
  }
}

}  // namespace planish::PLANISH_ISA
