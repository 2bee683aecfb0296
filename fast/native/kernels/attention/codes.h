// INT8 attention: both products of attention on codes (docs/spec.md 3), over one row's whole reach,
// because the scale of its weights is known only then. Eight query rows share their keys, in three
// passes, each over parts of the steps of 128 slots, which threads may share:
//
//     score_codes     scores: sums of codes of q and keys, scaled, biased and capped
//     weigh_codes     weights: exp(score - the largest of all parts), times the scale of its value
//     sum_codes       sums of codes of weights, by the largest of all parts, and of values
//     finish_codes    context: the sums of all parts, scaled
//
// Keys are stored as the tiles of an INT8 linear with S outputs and D inputs, values as those of
// one with D outputs and S inputs, as a linear's products need them. Sums of
// integers are exact, and those of floats take steps of 128 slots in order: neither chunks nor
// threads nor parts change a bit.
#pragma once

#include <cmath>
#include <type_traits>

#include "../rows/quantize.h"
#include "attend.h"

namespace planish::PLANISH_ISA {

// R queries as codes, for one thread.
template <int R>
struct CodedQueries {
  float scale[R];
  int32_t sum[R];  // of the codes
  float* rotated;  // [256] one query
  int8_t* codes;   // [R, D]

  explicit CodedQueries(float* scratch)
      : scale(), sum(), rotated(scratch), codes(reinterpret_cast<int8_t*>(scratch + kMostHead)) {}
};

// What the passes leave to each other: R rows over their whole reach.
template <int R>
struct CodedScores {
  int64_t steps;
  float* scores;         // [steps, R, 128], and then weights
  int8_t* weight_codes;  // [R, steps, 128]
  float* largest;        // [steps, R] scores
  float* most;           // [steps, R] weights
  float* sums;           // [steps, R] of exp(score - largest)

  CodedScores(const QueryTile& t, float* memory) : steps(count_steps(t)), scores(memory) {
    weight_codes = reinterpret_cast<int8_t*>(scores + steps * R * kSlots);
    largest = scores + steps * R * (kSlots + kSlots / 4);
    most = largest + steps * R;
    sums = most + steps * R;
  }

  float* step(int64_t i) const { return scores + i * R * kSlots; }
  int8_t* row_codes(int64_t r) const { return weight_codes + r * steps * kSlots; }
};

// Floats that kQueryRows rows over so many steps take.
inline int64_t codes_memory(int64_t steps) {
  return steps * kQueryRows * (kSlots + kSlots / 4 + 3);
}

// The largest of entry r of all steps, and of `least`.
template <int R>
float largest_of_steps(const float* values, int64_t steps, int64_t r, float least) {
  for (int64_t i = 0; i < steps; ++i) {
    if (values[i * R + r] > least) least = values[i * R + r];
  }
  return least;
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
void score_tiles(const Attention& a, const CodedQueries<R>& q, const Place& place, float* scores) {
  constexpr int N = kAtOnce<V, R>;
  const int64_t d = a.head_dim, at = place.index * a.slots + place.slot;
  const int8_t* keys = static_cast<const int8_t*>(a.keys) + at * d;
  const auto divisor = V::floats(a.divisor), inverse = V::floats(1.0f / a.divisor);
  const bool exact = is_power_of_two(a.divisor);
  for (int first = 0; first < R; first += N) {
    typename V::Ints sum[N * C];
    begin_sums<V, N, C>(q.sum + first, sum);
    add_codes<V, N, C, false>(q.codes + first * d, d, keys, 16 * d, d / 4, sum);
    unroll<C>([&](auto c) PLANISH_INLINE {
      const auto k_scale = a.fixed ? V::floats(a.fixed[1]) : V::load(a.key_scales + at + c * kTile);
      unroll<N>([&](auto r) PLANISH_INLINE {
        auto score = V::multiply(V::to_floats(sum[r * C + c]), V::floats(q.scale[first + r]));
        score = V::multiply(score, k_scale);
        score = exact ? V::multiply(score, inverse) : V::divide(score, divisor);
        V::store(scores + (first + r) * kSlots + c * kTile, score);
      });
    });
  }
}

// Rotated queries as codes; zeros in the rows after t.count.
template <class V, int R>
void quantize_queries(const Attention& a, const QueryTile& t, CodedQueries<R>& q) {
  const int64_t d = a.head_dim;
  __builtin_memset(q.codes, 0, R * d);
  for (int64_t r = 0; r < t.count; ++r) {
    const float* x = rotated_query<V>(a, t, r, q.rotated);
    q.scale[r] = codes_scale<V>(x, d, a.fixed);
    q.sum[r] = quantize<V>(x, d, q.scale[r], q.codes + r * d, 4);
  }
}

// The scores of some steps, and the largest of each row in each.
template <class V, int R>
void score_steps(const Attention& a, const QueryTile& t, Steps part, float* memory,
                 float* scratch) {
  CodedQueries<R> q(scratch);
  quantize_queries<V, R>(a, t, q);
  const CodedScores<R> m(t, memory);
  for (int64_t i = part.first; i < part.last; ++i) {
    const int64_t slot = t.begin + i * kSlots, slots = step_slots(t, i);
    float* scores = m.step(i);
    Place place = locate(a, t.row, t.head, slot);
    int64_t s = 0;
    for (; s + V::kTiles * kTile <= slots; s += V::kTiles * kTile) {
      score_tiles<V, R, V::kTiles>(a, q, place, scores + s);
      place.slot += V::kTiles * kTile;
    }
    for (; s < slots; s += kTile, place.slot += kTile) {
      score_tiles<V, R, 1>(a, q, place, scores + s);
    }
    Reach in[R];
    limit_scores<V, R>(a, t, slot, slots, scores, in);
    for (int64_t r = 0; r < t.count; ++r) {
      m.largest[i * R + r] = largest_score<V>(scores + r * kSlots, slots);
    }
  }
}

// Of the weights of a row's step.
struct Weighed {
  float sum;   // of exp(score - largest), NaN if a scale is
  float most;  // the largest weight
};

// Scores of a step that a row reads whole -> e or e * v_scale.
template <class V>
Weighed weigh_step(float* row, float shift, const float* v_scale, int64_t slots) {
  auto total = V::floats(0.0f), top = V::floats(0.0f);
  for (int64_t s = 0; s < slots; s += kTile) {
    const auto e = exp<V>(V::subtract(V::load(row + s), V::floats(shift)));
    const auto w = v_scale ? V::multiply(e, V::load(v_scale + s)) : e;
    total = V::fma(w, V::floats(0.0f), V::add(total, e));
    top = V::max(top, w);
    V::store(row + s, w);
  }
  return {V::sum(total), V::largest(top)};
}

// The same for a step that a row reads a part of: 0 elsewhere, where a scale may never have been
// written.
template <class V>
Weighed weigh_part(float* row, float shift, const float* v_scale, int64_t slots, const Reach& in) {
  Weighed found = {exp_row<V>(row, shift, slots, in), 0.0f};
  for (int64_t s = in.begin; s < in.end; ++s) {
    row[s] = v_scale ? row[s] * v_scale[s] : row[s];
    found.most = row[s] > found.most ? row[s] : found.most;
    found.sum += 0.0f * row[s];
  }
  return found;
}

// Codes rint(x / scale) of weights, which are 0 .. 127 * scale.
template <class V>
void quantize_row(const float* x, int64_t count, float scale, int8_t* codes) {
  const auto divisor = V::floats(scale), inverse = V::floats(1.0f / scale);
  for (int64_t i = 0; i < count; i += kTile) {
    V::narrow(codes + i, V::to_ints(nearest_code<V>(V::load(x + i), divisor, inverse)));
  }
}

// Scores of some steps -> weights; the sum and the largest of each row in each step.
template <class V, int R>
void weigh_steps(const Attention& a, const QueryTile& t, Steps part, float* memory) {
  const CodedScores<R> m(t, memory);
  for (int64_t r = 0; r < t.count; ++r) {
    const int64_t position = a.positions[row_of(a, t, r).token];
    const float largest = largest_of_steps<R>(m.largest, m.steps, r, -__builtin_inff());
    for (int64_t i = part.first; i < part.last; ++i) {
      const int64_t slot = t.begin + i * kSlots, slots = step_slots(t, i);
      const Reach in = reach(a, position, slot, slots);
      const Place place = locate(a, t.row, t.head, slot);
      const int64_t at = place.index * a.slots + place.slot;
      const float* v_scale = a.fixed ? nullptr : a.value_scales + at;
      float* row = m.step(i) + r * kSlots;
      Weighed found = {};
      if (in.end - in.begin == slots) found = weigh_step<V>(row, largest, v_scale, slots);
      else if (in.begin < in.end) found = weigh_part<V>(row, largest, v_scale, slots, in);
      else __builtin_memset(row, 0, sizeof(float) * slots);
      m.sums[i * R + r] = found.sum;
      m.most[i * R + r] = found.most;
    }
  }
}

// The scale of a row's codes of weights: the largest / 127, or 1 / 127 if scales are fixed.
template <int R>
float weight_scale(const Attention& a, const CodedScores<R>& m, int64_t r) {
  return (a.fixed ? 1.0f : largest_of_steps<R>(m.most, m.steps, r, 0.0f)) / 127.0f;
}

// Weights of some steps -> codes.
template <class V, int R>
void quantize_weights(const Attention& a, const QueryTile& t, Steps part, const CodedScores<R>& m) {
  for (int64_t r = 0; r < t.count; ++r) {
    const float scale = weight_scale<R>(a, m, r);
    for (int64_t i = part.first; i < part.last; ++i) {
      quantize_row<V>(m.step(i) + r * kSlots, step_slots(t, i), scale, m.row_codes(r) + i * kSlots);
    }
  }
  for (int64_t r = t.count; r < R; ++r) {
    __builtin_memset(m.row_codes(r) + part.first * kSlots, 0, (part.last - part.first) * kSlots);
  }
}

// C tiles of 16 channels of the sums [R, D] of codes of weights and values of some steps.
template <class V, int R, int C>
void sum_values(const Attention& a, const QueryTile& t, Steps part, const CodedScores<R>& m,
                int64_t tile, int32_t* sums) {
  const int64_t d = a.head_dim, stride = 16 * a.slots;
  const int64_t begin = t.begin + part.first * kSlots, most = t.begin + part.last * kSlots;
  const int64_t end = most < t.end ? most : t.end, run = a.table || a.ring ? kPage : end - begin;
  constexpr int N = kAtOnce<V, R>;
  for (int first = 0; first < R; first += N) {
    typename V::Ints sum[N * C];
    unroll<N * C>([&](auto i) PLANISH_INLINE { sum[i] = V::ints(0); });
    for (int64_t slot = begin; slot < end; slot += run) {
      const Place place = locate(a, t.row, t.head, slot);
      const int8_t* values = static_cast<const int8_t*>(a.values) + place.index * a.slots * d;
      values += tile * stride + 16 * place.slot;
      const int64_t left = end - slot, blocks = ((left < run ? left : run) + 15) / 16 * 4;
      add_codes<V, N, C, true>(m.row_codes(first) + slot - t.begin, m.steps * kSlots, values,
                               stride, blocks, sum);
    }
    unroll<N * C>([&](auto i) PLANISH_INLINE {
      V::store_ints(sums + (first + i / C) * d + (tile + i % C) * kTile, sum[i]);
    });
  }
}

template <class V, int R>
void sum_steps(const Attention& a, const QueryTile& t, Steps part, float* memory, int32_t* sums) {
  const CodedScores<R> m(t, memory);
  quantize_weights<V, R>(a, t, part, m);
  const int64_t tiles = a.head_dim / kTile;
  int64_t tile = 0;
  for (; tile + V::kTiles <= tiles; tile += V::kTiles) {
    sum_values<V, R, V::kTiles>(a, t, part, m, tile, sums);
  }
  for (; tile < tiles; ++tile) sum_values<V, R, 1>(a, t, part, m, tile, sums);
}

// t.sum, and the context, still to be divided by it: f32(the sums of all parts) * p_scale.
template <class V, int R>
void finish_steps(const Attention& a, const QueryTile& t, float* memory, const int32_t* sums,
                  int64_t parts) {
  const CodedScores<R> m(t, memory);
  const int64_t d = a.head_dim;
  for (int64_t r = 0; r < t.count; ++r) {
    t.sum[r] = 0.0f;
    for (int64_t i = 0; i < m.steps; ++i) t.sum[r] += m.sums[i * R + r];
    const auto scale = V::floats(weight_scale<R>(a, m, r));
    for (int64_t c = 0; c < d; c += kTile) {
      auto sum = V::load_ints(sums + r * d + c);
      for (int64_t p = 1; p < parts; ++p) {
        sum = V::add(sum, V::load_ints(sums + (p * kQueryRows + r) * d + c));
      }
      auto value = V::multiply(V::to_floats(sum), scale);
      if (a.fixed) value = V::multiply(value, V::floats(a.fixed[2]));
      V::store(t.context + r * d + c, value);
    }
  }
}

// Calls use(constant) with the number of rows that are computed for a tile's queries.
template <class Use>
void with_rows(const QueryTile& t, Use&& use) {
  if (t.count > 4) use(std::integral_constant<int, 8>{});
  else if (t.count > 2) use(std::integral_constant<int, 4>{});
  else if (t.count > 1) use(std::integral_constant<int, 2>{});
  else use(std::integral_constant<int, 1>{});
}

template <class V>
void score_codes(const Attention& a, const QueryTile& t, Steps part, float* memory,
                 float* scratch) {
  with_rows(t, [&](auto r) { score_steps<V, r>(a, t, part, memory, scratch); });
}

template <class V>
void weigh_codes(const Attention& a, const QueryTile& t, Steps part, float* memory) {
  with_rows(t, [&](auto r) { weigh_steps<V, r>(a, t, part, memory); });
}

template <class V>
void sum_codes(const Attention& a, const QueryTile& t, Steps part, float* memory, int32_t* sums) {
  with_rows(t, [&](auto r) { sum_steps<V, r>(a, t, part, memory, sums); });
}

template <class V>
void finish_codes(const Attention& a, const QueryTile& t, float* memory, const int32_t* sums,
                  int64_t parts) {
  with_rows(t, [&](auto r) { finish_steps<V, r>(a, t, memory, sums, parts); });
}

}  // namespace planish::PLANISH_ISA
