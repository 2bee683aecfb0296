// Rows of activations as floats: their norm (docs/spec.md), padded with zeros.
#pragma once

#include "../table.h"
#include "../vector/unroll.h"

namespace planish::PLANISH_ISA {

// 16 entries, or the first `left`.
template <class V>
PLANISH_INLINE inline typename V::Floats load_left(const float* p, int64_t left) {
  return left >= kTile ? V::load(p) : V::load_part(p, left);
}

template <class V>
PLANISH_INLINE inline void store_left(float* p, typename V::Floats value, int64_t left) {
  if (left >= kTile) V::store(p, value);
  else V::store_part(p, value, left);
}

// y = x - mean(x)
template <class V>
void centre_row(const float* x, int64_t k, float* y) {
  const auto count = V::floats(static_cast<float>(k));
  auto total = V::floats(0.0f);
  for (int64_t i = 0; i < k; i += kTile) total = V::add(total, V::load(x + i));
  const auto mean = V::divide(V::floats(V::sum(total)), count);
  for (int64_t i = 0; i < k; i += kTile) {
    store_left<V>(y + i, V::subtract(V::load(x + i), mean), k - i);
  }
}

// sqrt(mean(x^2) + eps)
template <class V>
float root_mean_square(const float* x, int64_t k, float eps) {
  using F = typename V::Floats;
  F squares[4] = {V::floats(0.0f), V::floats(0.0f), V::floats(0.0f), V::floats(0.0f)};
  for (int64_t i = 0; i < k; i += kTile) {
    const F value = V::load(x + i);
    squares[i / kTile % 4] = V::fma(value, value, squares[i / kTile % 4]);
  }
  const F total = V::add(V::add(squares[0], squares[1]), V::add(squares[2], squares[3]));
  return __builtin_sqrtf(V::sum(total) / static_cast<float>(k) + eps);
}

// RMSNorm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight + bias. LayerNorm (arXiv
// 1607.06450): the same for x - mean(x).
template <class V>
const float* apply_norm(const Source& s, const float* x, float* scratch) {
  const int64_t k = s.inputs;
  if (s.norm == Norm::kLayer) {
    centre_row<V>(x, k, scratch);
    x = scratch;
  }
  const auto root = V::floats(root_mean_square<V>(x, k, s.eps));
  for (int64_t i = 0; i < k; i += kTile) {
    auto value = V::divide(V::load(x + i), root);
    if (s.norm_weight) value = V::multiply(value, load_left<V>(s.norm_weight + i, k - i));
    if (s.norm_bias) value = V::add(value, load_left<V>(s.norm_bias + i, k - i));
    store_left<V>(scratch + i, value, k - i);
  }
  return scratch;
}

// The row as floats, normalized and padded with zeros to a multiple of 16. Returns scratch, or the
// row itself if neither changes it.
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
  return s.norm == Norm::kNone ? x : apply_norm<V>(s, x, scratch);
}

// The row as floats in the source's order, padded with zeros to a multiple of 16.
template <class V>
const float* ordered_row(const Source& s, int64_t row, float* scratch) {
  const int64_t k = s.inputs, padded = ceil_div(k, kTile) * kTile;
  const float* x = float_row<V>(s, row, scratch);
  if (!s.order) return x;
  float* y = scratch + padded;
  for (int64_t i = 0; i < k; ++i) y[i] = x[s.order[i]];
  for (int64_t i = k; i < padded; ++i) y[i] = 0.0f;
  return y;
}

// The sum of `count` inputs, which zeros pad to a multiple of 16.
template <class V>
float total_of(const float* x, int64_t count) {
  auto total = V::floats(0.0f);
  for (int64_t i = 0; i < count; i += kTile) total = V::add(total, V::load(x + i));
  return V::sum(total);
}

// Writes the row as floats to y, which has room for K rounded up to a multiple of 16.
template <class V>
void normalize_row(const Source& source, int64_t row, float* y) {
  const int64_t k = source.inputs;
  for (int64_t i = k & ~int64_t{15}; i < ceil_div(k, kTile) * kTile; ++i) y[i] = 0.0f;
  const float* x = float_row<V>(source, row, y);
  if (x != y) __builtin_memcpy(y, x, sizeof(float) * k);
}

}  // namespace planish::PLANISH_ISA
