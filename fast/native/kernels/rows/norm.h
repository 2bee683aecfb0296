// Rows of activations as floats: their norm (docs/spec.md), padded with zeros.
#pragma once

#include "../table.h"

namespace planish::PLANISH_ISA {

// x / sqrt(mean(x^2) + eps) * weight, or the same of x - mean(x), then + bias.
template <class V>
const float* normalized_row(const Source& s, const float* x, float* scratch) {
  using F = typename V::Floats;
  const int64_t k = s.inputs, whole = k & ~int64_t{15};
  const F count = V::floats(static_cast<float>(k));
  if (s.norm == Norm::kLayer) {
    F total = V::floats(0.0f);
    for (int64_t i = 0; i < k; i += 16) total = V::add(total, V::load(x + i));
    const F mean = V::divide(V::floats(V::sum(total)), count);
    for (int64_t i = 0; i < k; i += 16) {
      const F centred = V::subtract(V::load(x + i), mean);
      if (i < whole) V::store(scratch + i, centred);
      else V::store_part(scratch + i, centred, k - i);
    }
    x = scratch;
  }
  F squares[4] = {V::floats(0.0f), V::floats(0.0f), V::floats(0.0f), V::floats(0.0f)};
  for (int64_t i = 0; i < k; i += 16) {
    const F value = V::load(x + i);
    squares[i / 16 % 4] = V::fma(value, value, squares[i / 16 % 4]);
  }
  const F total = V::add(V::add(squares[0], squares[1]), V::add(squares[2], squares[3]));
  const float variance = V::sum(total) / static_cast<float>(k) + s.eps;
  const F root = V::floats(__builtin_sqrtf(variance));
  for (int64_t i = 0; i < k; i += 16) {
    const bool full = i < whole;
    F value = V::divide(V::load(x + i), root);
    if (s.norm_weight) {
      const float* p = s.norm_weight + i;
      value = V::multiply(value, full ? V::load(p) : V::load_part(p, k - i));
    }
    if (s.norm_bias) {
      const float* p = s.norm_bias + i;
      value = V::add(value, full ? V::load(p) : V::load_part(p, k - i));
    }
    if (full) V::store(scratch + i, value);
    else V::store_part(scratch + i, value, k - i);
  }
  return scratch;
}

// The row as floats, zeros behind it up to a multiple of 16: in scratch, or where it lies if
// nothing is to be done to it.
template <class V>
const float* float_row(const Source& s, int64_t row, float* scratch) {
  const int64_t k = s.inputs, whole = k & ~int64_t{15};
  const float* x = s.x + row * k;
  if (whole < k) {
    for (int64_t i = 0; i < k; i += 16) {
      V::store(scratch + i, i < whole ? V::load(x + i) : V::load_part(x + i, k - i));
    }
    x = scratch;
  }
  return s.norm == Norm::kNone ? x : normalized_row<V>(s, x, scratch);
}

// The row as floats in y, which has room for K rounded up to a multiple of 16.
template <class V>
void normalize_row(const Source& source, int64_t row, float* y) {
  const int64_t k = source.inputs;
  for (int64_t i = k & ~int64_t{15}; i < ceil_div(k, kTile) * kTile; ++i) y[i] = 0.0f;
  const float* x = float_row<V>(source, row, y);
  if (x != y) __builtin_memcpy(y, x, sizeof(float) * k);
}

}  // namespace planish::PLANISH_ISA
