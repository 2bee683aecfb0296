// INT8 quantization of activations (docs/spec.md 2 and 4).
#pragma once

#include "../table.h"
#include "norm.h"

namespace planish::PLANISH_ISA {

// The largest magnitude. Compared as integers, a NaN is above all numbers, so it is not lost.
template <class V>
float absmax(const float* x, int64_t count) {
  typename V::Ints most = V::ints(0);
  const auto magnitude = V::ints(0x7fffffff);
  for (int64_t i = 0; i < count; i += 16) {
    most = V::max(most, V::bits_and(V::bits(V::load(x + i)), magnitude));
  }
  const int32_t bits = V::largest(most);
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// rint(x / scale). A division takes as long as ten multiplications, so x * (1 / scale) is tried
// first: it is off by less than 255 * 3 * 2^-24 = 4.6e-5 where the code is not clipped anyway, and
// rounds to the same integer unless it is that close to a tie. There the division decides.
template <class V>
PLANISH_INLINE inline typename V::Floats nearest_code(typename V::Floats x,
                                                      typename V::Floats scale,
                                                      typename V::Floats inverse) {
  const auto ratio = V::multiply(x, inverse), nearest = V::round(ratio);
  const auto off = V::bits_and(V::bits(V::subtract(ratio, nearest)), V::ints(0x7fffffff));
  const bool tie = V::any_above(V::from_bits(off), V::floats(0.4999f));
  return __builtin_expect(tie, 0) ? V::round(V::divide(x, scale)) : nearest;
}

// The codes of a row with a scale: clip(rint(x / scale), -127, 127).
template <class V>
struct Grid {
  typename V::Floats scale, inverse;

  PLANISH_INLINE explicit Grid(float s) : scale(V::floats(s)), inverse(V::floats(1.0f / s)) {}

  // Of sixteen inputs; `count` of them exist, and zeros pad them.
  PLANISH_INLINE typename V::Ints codes(const float* x, int64_t) const {
    auto ratio = nearest_code<V>(V::load(x), scale, inverse);
    ratio = V::max(V::floats(-127.0f), V::min(V::floats(127.0f), ratio));
    return V::max(V::to_ints(ratio), V::ints(-127));  // a NaN would be -2^31
  }
};

alignas(64) constexpr int32_t kFirstLanes[2 * kTile] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                        -1, -1, -1, -1, -1, -1, -1, -1};

// The same around a zero point: clip(rint(x / scale) + zero, -128, 127). Inputs that pad a row have
// the code 0.
template <class V>
struct GridAround {
  typename V::Floats scale, inverse, zero;

  PLANISH_INLINE GridAround(float s, int8_t z)
      : scale(V::floats(s)), inverse(V::floats(1.0f / s)), zero(V::floats(z)) {}

  PLANISH_INLINE typename V::Ints codes(const float* x, int64_t count) const {
    auto ratio = V::add(nearest_code<V>(V::load(x), scale, inverse), zero);
    ratio = V::max(V::floats(-128.0f), V::min(V::floats(127.0f), ratio));
    const auto q = V::max(V::to_ints(ratio), V::ints(-128));
    return count >= kTile ? q : V::bits_and(q, V::load_ints(kFirstLanes + kTile - count));
  }
};

// Writes the codes of `count` inputs, four every `stride` bytes; returns their sum.
template <class V, class G>
int32_t quantize(const float* x, int64_t count, const G& grid, int8_t* codes, int64_t stride) {
  typename V::Ints total = V::ints(0);
  for (int64_t i = 0; i < count; i += 16) {
    const auto q = grid.codes(x + i, count - i);
    total = V::add(total, q);
    int8_t narrow[16];
    V::narrow(narrow, q);
    const int64_t steps = (count - i + 3) / 4 < 4 ? (count - i + 3) / 4 : 4;
    for (int64_t s = 0; s < steps; ++s) {
      __builtin_memcpy(codes + (i / 4 + s) * stride, narrow + 4 * s, 4);
    }
  }
  return V::sum(total);
}

template <class V>
int32_t quantize(const float* x, int64_t count, float scale, int8_t* codes, int64_t stride) {
  return quantize<V>(x, count, Grid<V>(scale), codes, stride);
}

template <class V>
float row_absmax(const Source& source, int64_t row, float* scratch) {
  return absmax<V>(float_row<V>(source, row, scratch), source.inputs);
}

}  // namespace planish::PLANISH_ISA
