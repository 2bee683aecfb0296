// Rows of activations made ready: norm and dynamic quantization (SPEC 2); and gated on their way on.
#pragma once

#include "elementwise.h"
#include "kernels.h"

namespace planish::PLANISH_ISA {

constexpr float kSmallestAbsmax = 1e-5f;

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

// The largest magnitude. Compared as integers, NaN is above everything and so is not lost.
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

// scale = max(absmax, 1e-5) / 127; NaN stays NaN.
inline float int8_scale(float largest) {
  return (largest < kSmallestAbsmax ? kSmallestAbsmax : largest) / 127.0f;
}

// rint(x / scale). A division takes as long as ten multiplications, so x * (1 / scale) is tried
// first: it is off by less than 127 * 3 * 2^-24 = 2.3e-5 where the code is not clipped anyway, and
// rounds to the same integer unless it lies that close to a tie. There the division decides.
template <class V>
PLANISH_INLINE inline typename V::Floats nearest_code(typename V::Floats x, typename V::Floats scale,
                                                      typename V::Floats inverse) {
  const auto ratio = V::multiply(x, inverse), nearest = V::round(ratio);
  const auto off = V::bits_and(V::bits(V::subtract(ratio, nearest)), V::ints(0x7fffffff));
  const bool tie = V::any_above(V::from_bits(off), V::floats(0.4999f));
  return __builtin_expect(tie, 0) ? V::round(V::divide(x, scale)) : nearest;
}

// q = clip(rint(x / scale), -127, 127) of `count` inputs into steps of `stride` bytes; their sum.
template <class V>
int32_t quantize(const float* x, int64_t count, float scale, int8_t* codes, int64_t stride) {
  typename V::Ints total = V::ints(0);
  const auto divisor = V::floats(scale), inverse = V::floats(1.0f / scale);
  for (int64_t i = 0; i < count; i += 16) {
    auto ratio = nearest_code<V>(V::load(x + i), divisor, inverse);
    ratio = V::max(V::floats(-127.0f), V::min(V::floats(127.0f), ratio));
    const auto q = V::max(V::to_ints(ratio), V::ints(-127));  // a NaN would be -2^31
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
float row_absmax(const Source& source, int64_t row, float* scratch) {
  return absmax<V>(float_row<V>(source, row, scratch), source.inputs);
}

template <class V>
void prepare_row(const Source& source, const Rows& rows, int64_t row, float scale, float* scratch) {
  const int64_t k = source.inputs;
  for (int64_t i = k & ~int64_t{15}; i < k + 16; ++i) scratch[i] = 0.0f;
  const float* x = float_row<V>(source, row, scratch);
  const int64_t whole = rows.rows & ~(kRowTile - 1);
  int64_t first = row < whole ? row & ~(kRowTile - 1) : whole;
  int64_t size = row_tile(rows.rows - first);
  while (row >= first + size) {
    first += size;
    size = row_tile(rows.rows - first);
  }
  const int64_t lane = row - first;
  if (rows.granularity == Granularity::kFloat) {
    const int64_t padded = rows.steps * 4;
    float* out = rows.floats + first * padded + lane;
    for (int64_t i = 0; i < padded; ++i) out[i * size] = i < k ? x[i] : 0.0f;
    return;
  }
  int8_t* codes = rows.codes + first * rows.steps * 4 + lane * 4;
  int32_t* sums = rows.sums + first * rows.groups + lane;
  float* scales = rows.scales + first * rows.scale_groups + lane;
  const int64_t stride = size * 4;
  if (rows.granularity == Granularity::kRow) scale = int8_scale(absmax<V>(x, k));
  for (int64_t s = (k + 3) / 4; s < rows.steps; ++s) __builtin_memset(codes + s * stride, 0, 4);
  for (int64_t g = 0; g < rows.groups; ++g) {
    const int64_t start = g * rows.group_inputs;
    const int64_t count = k - start < rows.group_inputs ? k - start : rows.group_inputs;
    if (rows.granularity == Granularity::kGroup) scale = int8_scale(absmax<V>(x + start, count));
    if (g < rows.scale_groups) scales[g * size] = scale;
    sums[g * size] = quantize<V>(x + start, count, scale, codes + start / 4 * stride, stride);
  }
}

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
