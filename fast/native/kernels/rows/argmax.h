// The greedy choice among logits.
#pragma once

#include "../table.h"

namespace planish::PLANISH_ISA {

// The index of the first maximum; -1 if any entry is NaN or the maximum is infinite.
template <class V>
int32_t argmax(const float* x, int64_t count) {
  auto most = V::floats(-__builtin_inff());
  auto magnitude = V::ints(0);
  const auto no_sign = V::ints(0x7fffffff);
  float largest = -__builtin_inff();
  int64_t i = 0;
  for (; i + kTile <= count; i += kTile) {
    const auto value = V::load(x + i);
    most = V::max(most, value);
    magnitude = V::max(magnitude, V::bits_and(V::bits(value), no_sign));
  }
  if (i > 0) largest = V::largest(most);
  bool nan = V::largest(magnitude) > 0x7f800000;
  for (; i < count; ++i) {
    nan = nan || x[i] != x[i];
    largest = x[i] > largest ? x[i] : largest;
  }
  if (nan || !(__builtin_fabsf(largest) < __builtin_inff())) return -1;
  for (i = 0; x[i] != largest;) ++i;
  return static_cast<int32_t>(i);
}

}  // namespace planish::PLANISH_ISA
