// Scores before the softmax: linear biases (ALiBi, arXiv 2108.12409) and a soft cap.
#pragma once

#include "../table.h"
#include "../vector/functions.h"

namespace planish::PLANISH_ISA {

// Rounds floats to bfloat16, half to even.
template <class V>
typename V::Floats as_bfloat16(typename V::Floats x) {
  const auto bits = V::bits(x);
  const auto odd = V::bits_and(V::template shift_right<16>(bits), V::ints(1));
  const auto raised = V::add(bits, V::add(odd, V::ints(0x7fff)));
  return V::from_bits(V::bits_and(raised, V::ints(-65536)));
}

// slope * (slot - position) of 16 slots; if biases are rounded, slope * slot, each factor and the
// product rounded to bfloat16.
template <class V>
typename V::Floats linear_bias(const Attention& a, float slope, int64_t slot, int64_t position) {
  alignas(64) static constexpr float kLanes[kTile] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                      8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t first = a.bfloat16 ? slot : slot - position;
  const auto distance = V::add(V::floats(static_cast<float>(first)), V::load(kLanes));
  if (!a.bfloat16) return V::multiply(V::floats(slope), distance);
  const auto rounded = as_bfloat16<V>(V::floats(slope));
  return as_bfloat16<V>(V::multiply(rounded, as_bfloat16<V>(distance)));
}

// The divided scores of one row with `slots` slots from `slot` on: biased, then capped.
template <class V>
void adjust(const Attention& a, int64_t head, int64_t position, int64_t slot, int64_t slots,
            float* row) {
  const auto divisor = V::floats(a.divided ? a.divisor : 1.0f), cap = V::floats(a.cap);
  for (int64_t s = 0; s < slots; s += kTile) {
    auto score = V::load(row + s);
    if (a.slopes) {
      const auto bias = linear_bias<V>(a, a.slopes[head], slot + s, position);
      score = V::add(score, V::divide(bias, divisor));
    }
    if (a.cap > 0.0f) score = V::multiply(cap, tanh<V>(V::divide(score, cap)));
    V::store(row + s, score);
  }
}

}  // namespace planish::PLANISH_ISA
