// INT8 attention: both products of attention on codes (docs/spec.md 3), one row's whole reach at
// once, because the scale of its weights is known only then. Eight query rows share their keys:
//
//     scores    sums of codes of q and keys, scaled, biased and capped: floats [steps, R, 128]
//     weights   exp(score - largest) of each row, times the scale of its value; their codes
//     context   sums of codes of weights and values, scaled
//
// Keys are stored as the tiles of an INT8 linear with S outputs and D inputs, values as those of
// one with D outputs and S inputs, as a linear's products need them. Sums of
// integers are exact, and those of floats take steps of 128 slots in order: neither chunks nor
// threads change a bit.
#pragma once

#include <cmath>

#include "../rows/quantize.h"
#include "attend.h"

namespace planish::PLANISH_ISA {

// The memory that R query rows take.
template <int R>
struct CodeTile {
  float scale[R];         // of the rows' codes
  int32_t sum[R];         // of their codes
  float weight_scale[R];  // of the codes of their weights
  float* query;           // [256] one rotated query
  int8_t* codes;          // [R, D]
  float* scores;          // [steps, R, 128]
  int8_t* weights;        // [R, steps, 128] codes
  int64_t steps;

  CodeTile(const QueryTile& t, float* scratch) : scale(), sum(), weight_scale() {
    steps = ceil_div(t.end - t.begin, kSlots);
    query = scratch;
    codes = reinterpret_cast<int8_t*>(query + kMostHead);
    scores = query + kMostHead + R * kMostHead / 4;
    weights = reinterpret_cast<int8_t*>(scores + steps * R * kSlots);
  }

  float* step(int64_t i) const { return scores + i * R * kSlots; }
  int8_t* row_weights(int64_t r) const { return weights + r * steps * kSlots; }
};

// Floats that kQueryRows rows take over the longest reach of a call.
inline int64_t codes_scratch(const Attention& a) {
  const int64_t most = a.window + kQueryRows + kSlots;  // a reach begins at a multiple of 128
  const int64_t slots = ceil_div(most < capacity(a) ? most : capacity(a), kSlots) * kSlots;
  return kMostHead + kQueryRows * (kMostHead / 4 + slots + slots / 4);
}

// The slots of a step, a multiple of 16.
inline int64_t step_slots(const QueryTile& t, int64_t step) {
  const int64_t left = (t.end - t.begin - step * kSlots + 15) & ~int64_t{15};
  return left < kSlots ? left : kSlots;
}

// The scale of some floats: calibrated, or of their own. NaN and Inf, which no code can hold, give
// a scale of NaN.
template <class V>
float codes_scale(const float* x, int64_t count, const float* fixed) {
  const float most = absmax<V>(x, count);
  if (!(most < __builtin_inff())) return __builtin_nanf("");
  return fixed ? *fixed : int8_scale(most);
}

// Adds products of R rows of codes, `wide` bytes each, with C tiles: `stride` bytes apart, `blocks`
// of 64 bytes. kPositive: no code of a row is negative.
template <class V, int R, int C, bool kPositive>
PLANISH_INLINE inline void add_codes(const int8_t* x, int64_t wide, const int8_t* tiles,
                                     int64_t stride, int64_t blocks,
                                     typename V::Ints (&sum)[R * C]) {
  for (int64_t b = 0; b < blocks; ++b) {
    typename V::Bytes w[C];
    unroll<C>([&](auto c) PLANISH_INLINE {
      const int8_t* codes = tiles + c * stride + b * kTileBytes;
      if constexpr (kPositive) w[c] = V::signed_bytes(codes);
      else w[c] = V::int8_weights(reinterpret_cast<const uint8_t*>(codes));
    });
    unroll<R>([&](auto r) PLANISH_INLINE {
      const auto four = V::four(x + r * wide + b * 4);
      unroll<C>([&](auto c) PLANISH_INLINE {
        if constexpr (kPositive) V::dot_positive(sum[r * C + c], w[c], four);
        else V::dot_int8(sum[r * C + c], w[c], four);
      });
    });
  }
}

// Then x / divisor and x * (1 / divisor) are the same numbers.
inline bool is_power_of_two(float x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5f;
}

// Sums of products of R rows of codes with C tiles, before the first: what the products will have
// too much where weights are shifted to be positive.
template <class V, int R, int C>
PLANISH_INLINE inline void begin_sums(const int32_t* row_sums, typename V::Ints (&sum)[R * C]) {
  unroll<R * C>([&](auto i) PLANISH_INLINE {
    constexpr int shift = V::kInt8Zero == 0 ? 0 : 7;
    const auto row_sum = V::ints(V::kInt8Zero == 0 ? 0 : row_sums[i / C]);
    sum[i] = V::subtract(V::ints(0), V::template shift_left<shift>(row_sum));
  });
}

// Scores of R rows with C tiles of 16 slots: ((f32(sum) * q_scale) * k_scale) / divisor.
template <class V, int R, int C>
void score_tiles(const Attention& a, const CodeTile<R>& m, const Place& place, float* scores) {
  constexpr int N = kAtOnce<V, R>;
  const int64_t d = a.head_dim, at = place.index * a.slots + place.slot;
  const int8_t* keys = static_cast<const int8_t*>(a.keys) + at * d;
  const auto divisor = V::floats(a.divisor), inverse = V::floats(1.0f / a.divisor);
  const bool exact = is_power_of_two(a.divisor);
  for (int first = 0; first < R; first += N) {
    typename V::Ints sum[N * C];
    begin_sums<V, N, C>(m.sum + first, sum);
    add_codes<V, N, C, false>(m.codes + first * d, d, keys, 16 * d, d / 4, sum);
    unroll<C>([&](auto c) PLANISH_INLINE {
      const auto k_scale = a.fixed ? V::floats(a.fixed[1]) : V::load(a.key_scales + at + c * kTile);
      unroll<N>([&](auto r) PLANISH_INLINE {
        auto score = V::multiply(V::to_floats(sum[r * C + c]), V::floats(m.scale[first + r]));
        score = V::multiply(score, k_scale);
        score = exact ? V::multiply(score, inverse) : V::divide(score, divisor);
        V::store(scores + (first + r) * kSlots + c * kTile, score);
      });
    });
  }
}

// Rotated queries as codes; zeros in the rows after t.count.
template <class V, int R>
void quantize_queries(const Attention& a, const QueryTile& t, CodeTile<R>& m) {
  const int64_t d = a.head_dim;
  __builtin_memset(m.codes, 0, R * d);
  for (int64_t r = 0; r < t.count; ++r) {
    const float* x = rotated_query<V>(a, t, r, m.query);
    m.scale[r] = codes_scale<V>(x, d, a.fixed);
    m.sum[r] = quantize<V>(x, d, m.scale[r], m.codes + r * d, 4);
  }
}

// The scores of all steps; t.largest becomes the largest of each row.
template <class V, int R>
void score_codes(const Attention& a, const QueryTile& t, const CodeTile<R>& m) {
  for (int64_t r = 0; r < t.count; ++r) t.largest[r] = -__builtin_inff();
  for (int64_t i = 0; i < m.steps; ++i) {
    const int64_t slot = t.begin + i * kSlots, slots = step_slots(t, i);
    float* scores = m.step(i);
    Place place = locate(a, t.row, t.head, slot);
    int64_t s = 0;
    for (; s + V::kTiles * kTile <= slots; s += V::kTiles * kTile) {
      score_tiles<V, R, V::kTiles>(a, m, place, scores + s);
      place.slot += V::kTiles * kTile;
    }
    for (; s < slots; s += kTile, place.slot += kTile) {
      score_tiles<V, R, 1>(a, m, place, scores + s);
    }
    Reach in[R];
    limit_scores<V, R>(a, t, slot, slots, scores, in);
    for (int64_t r = 0; r < t.count; ++r) {
      const float largest = largest_score<V>(scores + r * kSlots, slots);
      if (largest > t.largest[r]) t.largest[r] = largest;
    }
  }
}

// Scores of a step that a row reads whole -> e or e * v_scale; returns the sum of e, and the
// largest of what was stored in `most`.
template <class V>
float weigh_step(float* row, float shift, const float* v_scale, int64_t slots, float* most) {
  auto total = V::floats(0.0f), top = V::floats(*most);
  for (int64_t s = 0; s < slots; s += kTile) {
    const auto e = exp<V>(V::subtract(V::load(row + s), V::floats(shift)));
    const auto w = v_scale ? V::multiply(e, V::load(v_scale + s)) : e;
    total = V::add(total, e);
    top = V::max(top, w);
    V::store(row + s, w);
  }
  *most = V::largest(top);
  return V::sum(total);
}

// The same for a step that a row reads a part of: 0 elsewhere, where a scale may never have been
// written.
template <class V>
float weigh_part(float* row, float shift, const float* v_scale, int64_t slots, const Reach& in,
                 float* most) {
  const float total = exp_row<V>(row, shift, slots, in);
  for (int64_t s = in.begin; s < in.end; ++s) {
    row[s] = v_scale ? row[s] * v_scale[s] : row[s];
    *most = row[s] > *most ? row[s] : *most;
  }
  return total;
}

// Codes rint(x / scale) of weights, which are 0 .. 127 * scale.
template <class V>
void quantize_row(const float* x, int64_t count, float scale, int8_t* codes) {
  const auto divisor = V::floats(scale), inverse = V::floats(1.0f / scale);
  for (int64_t i = 0; i < count; i += kTile) {
    V::narrow(codes + i, V::to_ints(nearest_code<V>(V::load(x + i), divisor, inverse)));
  }
}

// Scores -> codes of weights, with their scale: the largest / 127, or 1 / 127 if scales are fixed.
template <class V, int R>
void quantize_weights(const Attention& a, const QueryTile& t, CodeTile<R>& m) {
  if (t.count < R) __builtin_memset(m.weights, 0, m.steps * R * kSlots);
  for (int64_t r = 0; r < t.count; ++r) {
    const int64_t position = a.positions[row_of(a, t, r).token];
    float most = 0.0f;
    t.sum[r] = 0.0f;
    for (int64_t i = 0; i < m.steps; ++i) {
      const int64_t slot = t.begin + i * kSlots, slots = step_slots(t, i);
      const Reach in = reach(a, position, slot, slots);
      const Place place = locate(a, t.row, t.head, slot);
      const int64_t at = place.index * a.slots + place.slot;
      const float* v_scale = a.fixed ? nullptr : a.value_scales + at;
      float *row = m.step(i) + r * kSlots, largest = t.largest[r];
      if (in.end - in.begin == slots) {
        t.sum[r] += weigh_step<V>(row, largest, v_scale, slots, &most);
      } else if (in.begin < in.end) {
        t.sum[r] += weigh_part<V>(row, largest, v_scale, slots, in, &most);
      } else {
        __builtin_memset(row, 0, sizeof(float) * slots);
      }
    }
    m.weight_scale[r] = (a.fixed ? 1.0f : most) / 127.0f;
    for (int64_t i = 0; i < m.steps; ++i) {
      quantize_row<V>(m.step(i) + r * kSlots, step_slots(t, i), m.weight_scale[r],
                      m.row_weights(r) + i * kSlots);
    }
  }
}

// C tiles of 16 channels of the context, still to be divided by t.sum: f32(sum) * p_scale.
template <class V, int R, int C>
void weigh_values(const Attention& a, const QueryTile& t, const CodeTile<R>& m, int64_t tile) {
  const int64_t d = a.head_dim, stride = 16 * a.slots,
                run = a.table || a.ring ? kPage : t.end - t.begin;
  constexpr int N = kAtOnce<V, R>;
  const auto v_scale = V::floats(a.fixed ? a.fixed[2] : 1.0f);
  for (int first = 0; first < R; first += N) {
    typename V::Ints sum[N * C];
    unroll<N * C>([&](auto i) PLANISH_INLINE { sum[i] = V::ints(0); });
    for (int64_t slot = t.begin; slot < t.end; slot += run) {
      const Place place = locate(a, t.row, t.head, slot);
      const int8_t* values = static_cast<const int8_t*>(a.values) + place.index * a.slots * d;
      values += tile * stride + 16 * place.slot;
      const int64_t left = t.end - slot, blocks = ((left < run ? left : run) + 15) / 16 * 4;
      add_codes<V, N, C, true>(m.row_weights(first) + slot - t.begin, m.steps * kSlots, values,
                               stride, blocks, sum);
    }
    unroll<N * C>([&](auto i) PLANISH_INLINE {
      const auto r = first + i / C;
      auto value = V::multiply(V::to_floats(sum[i]), V::floats(m.weight_scale[r]));
      if (a.fixed) value = V::multiply(value, v_scale);
      V::store(t.context + r * d + (tile + i % C) * kTile, value);
    });
  }
}

template <class V, int R>
void attend_codes_tile(const Attention& a, const QueryTile& t, float* scratch) {
  CodeTile<R> m(t, scratch);
  quantize_queries<V, R>(a, t, m);
  score_codes<V, R>(a, t, m);
  quantize_weights<V, R>(a, t, m);
  const int64_t tiles = a.head_dim / kTile;
  int64_t tile = 0;
  for (; tile + V::kTiles <= tiles; tile += V::kTiles) {
    weigh_values<V, R, V::kTiles>(a, t, m, tile);
  }
  for (; tile < tiles; ++tile) weigh_values<V, R, 1>(a, t, m, tile);
}

// As attend(), on codes: t must hold the rows' whole reach.
template <class V>
void attend_codes(const Attention& a, const QueryTile& t, float* scratch) {
  if (t.count > 4) attend_codes_tile<V, 8>(a, t, scratch);
  else if (t.count > 2) attend_codes_tile<V, 4>(a, t, scratch);
  else if (t.count > 1) attend_codes_tile<V, 2>(a, t, scratch);
  else attend_codes_tile<V, 1>(a, t, scratch);
}

}  // namespace planish::PLANISH_ISA
