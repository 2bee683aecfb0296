// Elementwise functions: exp, tanh and silu, to about 2 ulps.
#pragma once

#include "unroll.h"

namespace planish::PLANISH_ISA {

// exp(x) = power * (1 + rest): power = 2^n, n = rint(x / ln 2), rest = p(r) - 1, r = x - n ln 2 in
// two parts, p of degree 6 (the minimax polynomial of Cephes' expf). x is clamped to -87.3..88.3.
template <class V>
PLANISH_INLINE inline typename V::Floats exp_rest(typename V::Floats x, typename V::Floats& power) {
  using F = typename V::Floats;
  const F low = V::floats(-87.3f), high = V::floats(88.3f);
  x = V::min(high, V::max(low, x));  // in this order the second operand, a NaN, is kept
  const F n = V::round(V::multiply(x, V::floats(1.44269504088896341f)));
  F r = V::fma(n, V::floats(-0.693359375f), x);
  r = V::fma(n, V::floats(2.12194440e-4f), r);
  F p = V::floats(1.9875691500e-4f);
  p = V::fma(p, r, V::floats(1.3981999507e-3f));
  p = V::fma(p, r, V::floats(8.3334519073e-3f));
  p = V::fma(p, r, V::floats(4.1665795894e-2f));
  p = V::fma(p, r, V::floats(1.6666665459e-1f));
  p = V::fma(p, r, V::floats(5.0000001201e-1f));
  const auto exponent = V::template shift_left<23>(V::add(V::to_ints(n), V::ints(127)));
  power = V::from_bits(exponent);
  return V::fma(p, V::multiply(r, r), r);
}

// Below -87.3 the result is exp(-87.3), about 1e-38; NaN stays NaN.
template <class V>
PLANISH_INLINE inline typename V::Floats exp(typename V::Floats x) {
  typename V::Floats power;
  const auto rest = exp_rest<V>(x, power);
  return V::multiply(V::add(rest, V::floats(1.0f)), power);
}

// (exp(2x) - 1) / (exp(2x) + 1), the difference without cancellation.
template <class V>
PLANISH_INLINE inline typename V::Floats tanh(typename V::Floats x) {
  const auto high = V::floats(20.0f), low = V::floats(-20.0f);
  typename V::Floats power;
  const auto rest = exp_rest<V>(V::min(high, V::max(low, V::add(x, x))), power);
  const auto numerator = V::add(V::multiply(rest, power), V::subtract(power, V::floats(1.0f)));
  return V::divide(numerator, V::add(numerator, V::floats(2.0f)));
}

// x * sigmoid(x) with e = exp(-|x|), so that nothing overflows: x / (1 + e), or x e / (1 + e) if x
// is negative.
template <class V>
PLANISH_INLINE inline typename V::Floats silu(typename V::Floats x) {
  using F = typename V::Floats;
  const F zero = V::floats(0.0f);
  const F positive = V::max(zero, x), negative = V::min(zero, x);  // a NaN, second, is kept
  const F e = exp<V>(V::subtract(negative, positive));
  return V::divide(V::fma(negative, e, positive), V::add(V::floats(1.0f), e));
}

}  // namespace planish::PLANISH_ISA
