// Attention of query rows over the cache, in float32. Eight rows that share their keys are computed
// together, over 128 slots at a time.
#pragma once

#include "../matmul/products.h"
#include "cache.h"
#include "scores.h"
#include "softmax.h"

namespace planish::PLANISH_ISA {

// The token and the head whose query is in a row of a tile.
struct QueryRow {
  int64_t token, head;
};

inline QueryRow row_of(const Attention& a, const QueryTile& t, int64_t r) {
  const int64_t shared = a.heads / a.kv_heads, at = t.first + r;
  return {t.token + at / shared, t.head * shared + at % shared};
}

// A few slots of one key-value head: floats, or codes with a scale for each slot.
template <class W>
struct Slots {
  const W* keys;    // [count / 16, D, 16]
  const W* values;  // [count, D]
  const float* key_scales;
  const float* value_scales;
  int64_t first, count;  // count is a multiple of 16

  Slots(const Attention& a, const QueryTile& t, int64_t slot, int64_t slots)
      : key_scales(nullptr), value_scales(nullptr), first(slot), count(slots) {
    const Place place = locate(a, t.row, t.head, slot);
    const int64_t at = place.index * a.slots + place.slot;
    keys = static_cast<const W*>(a.keys) + at * a.head_dim;
    values = static_cast<const W*>(a.values) + at * a.head_dim;
    if (!a.int8) return;
    key_scales = a.key_scales + at;
    value_scales = a.value_scales + at;
  }
};

// Adds biases to the scores of each row, caps them, and sets those out of its reach to -inf.
template <class V, int R>
PLANISH_INLINE inline void limit_scores(const Attention& a, const QueryTile& t, int64_t slot,
                                        int64_t slots, float* scores, Reach (&in)[R]) {
  for (int64_t r = 0; r < t.count; ++r) {
    const QueryRow of = row_of(a, t, r);
    const int64_t position = a.positions[of.token];
    float* row = scores + r * kSlots;
    if (a.slopes || a.cap > 0.0f) adjust<V>(a, of.head, position, slot, slots, row);
    in[r] = reach(a, position, slot, slots);
    fill_outside(in[r], slots, -__builtin_inff(), row);
  }
}

// Scores of each row -> exp(score - largest). The row's sum and context so far are rescaled to the
// new largest score.
template <class V, int R>
PLANISH_INLINE inline void exp_rows(const QueryTile& t, int64_t slots, int64_t d,
                                    const Reach (&in)[R], const float* rescale, float* scores) {
  for (int64_t r = 0; r < t.count; ++r) {
    float* row = scores + r * kSlots;
    if (in[r].begin == in[r].end) {  // nothing to read here
      for (int64_t s = 0; s < slots; ++s) row[s] = 0.0f;
      continue;
    }
    t.sum[r] = t.sum[r] * rescale[r] + exp_row<V>(row, t.largest[r], slots, in[r]);
    if (rescale[r] == 1.0f) continue;
    const auto factor = V::floats(rescale[r]);
    float* context = t.context + r * d;
    for (int64_t i = 0; i < d; i += kTile) {
      V::store(context + i, V::multiply(V::load(context + i), factor));
    }
  }
}

// One step: scores of R rows with some slots, their exponentials, and values added to the context.
template <class V, int R, class W>
PLANISH_INLINE inline void attend_slots(const Attention& a, const QueryTile& t, const float* q,
                                        const Slots<W>& s, float* scores) {
  const int64_t d = a.head_dim;
  __builtin_memset(scores, 0, sizeof(float) * R * kSlots);
  float_products<V, R, 1, kMostHead>(q, s.keys, 16, 16 * d, s.count / 16, 64 * d, d, scores,
                                     kSlots);
  if (s.key_scales) scale_slots<V>(scores, t.count, s.key_scales, s.count);
  Reach in[R];
  limit_scores<V, R>(a, t, s.first, s.count, scores, in);
  alignas(64) float rescale[kTile];
  raise_largest<V, R>(t, scores, s.count, rescale);
  exp_rows<V, R>(t, s.count, d, in, rescale, scores);
  if (s.value_scales) scale_slots<V>(scores, t.count, s.value_scales, s.count);
  const int64_t left = t.end - s.first;
  const int64_t written = left < s.count ? left : s.count;  // slots after t.end are not read
  float_products<V, R, 1, kSlots>(scores, s.values, d, 16, d / 16, 16 * d, written, t.context, d);
}

// The rotated query of row r: in `buffer`, or where it came from if queries are not rotated.
template <class V>
const float* rotated_query(const Attention& a, const QueryTile& t, int64_t r, float* buffer) {
  const QueryRow of = row_of(a, t, r);
  const float* x = a.q + (of.token * a.heads + of.head) * a.head_dim;
  if (!a.rotary) return x;
  rotate<V>(a, x, a.positions[of.token], buffer);
  return buffer;
}

// Rotated queries divided by the divisor, [R, 256]; zeros in the rows after t.count.
template <class V, int R>
void prepare_queries(const Attention& a, const QueryTile& t, float* q) {
  const int64_t d = a.head_dim;
  const auto divisor = V::floats(a.divisor);
  for (int64_t r = 0; r < t.count; ++r) {
    float* row = q + r * kMostHead;
    const float* x = rotated_query<V>(a, t, r, row);
    for (int64_t i = 0; i < d; i += kTile) V::store(row + i, V::divide(V::load(x + i), divisor));
  }
  __builtin_memset(q + t.count * kMostHead, 0, sizeof(float) * (R - t.count) * kMostHead);
}

template <class V, int R>
void attend_tile(const Attention& a, const QueryTile& t, float* scratch) {
  float* q = scratch;                 // [R, 256]
  float* scores = q + R * kMostHead;  // [R, 128]
  prepare_queries<V, R>(a, t, q);
  for (int64_t r = 0; r < t.count; ++r) {
    t.largest[r] = -__builtin_inff();
    t.sum[r] = 0.0f;
  }
  __builtin_memset(t.context, 0, sizeof(float) * R * a.head_dim);
  for (int64_t slot = t.begin; slot < t.end; slot += kSlots) {
    int64_t slots = (t.end - slot + 15) & ~int64_t{15};
    if (slots > kSlots) slots = kSlots;
    if (a.int8) attend_slots<V, R, int8_t>(a, t, q, {a, t, slot, slots}, scores);
    else attend_slots<V, R, float>(a, t, q, {a, t, slot, slots}, scores);
  }
}

// t.context has room for 8 rows, or for 4, 2 or 1 if t.count is no larger.
template <class V>
void attend(const Attention& a, const QueryTile& t, float* scratch) {
  if (t.count > 4) attend_tile<V, 8>(a, t, scratch);
  else if (t.count > 2) attend_tile<V, 4>(a, t, scratch);
  else if (t.count > 1) attend_tile<V, 2>(a, t, scratch);
  else attend_tile<V, 1>(a, t, scratch);
}

inline int64_t attention_scratch(const Attention&) { return kQueryRows * (kMostHead + kSlots); }

// out = x / sum
template <class V>
void divide_row(const float* x, float sum, int64_t d, float* out) {
  const auto divisor = V::floats(sum);
  for (int64_t i = 0; i < d; i += kTile) V::store(out + i, V::divide(V::load(x + i), divisor));
}

// Adds row r over a segment of slots to the same over earlier ones: each is weighted by
// exp(its largest score - the largest of both). A row that reads nothing there adds nothing.
template <class V>
void fold_row(const QueryTile& whole, const QueryTile& part, int64_t r, int64_t d) {
  const float before = whole.largest[r], here = part.largest[r];
  float *to = whole.context + r * d, *from = part.context + r * d;
  if (part.sum[r] == 0.0f && here == -__builtin_inff()) return;
  if (whole.sum[r] == 0.0f && before == -__builtin_inff()) {
    whole.largest[r] = here;
    whole.sum[r] = part.sum[r];
    __builtin_memcpy(to, from, sizeof(float) * d);
    return;
  }
  const float largest = here > before ? here : before;
  alignas(64) float weights[kTile] = {before - largest, here - largest};
  V::store(weights, exp<V>(V::load(weights)));
  whole.largest[r] = largest;
  whole.sum[r] = whole.sum[r] * weights[0] + part.sum[r] * weights[1];
  const auto old = V::floats(weights[0]), added = V::floats(weights[1]);
  for (int64_t i = 0; i < d; i += kTile) {
    const auto part_of = V::multiply(V::load(from + i), added);
    V::store(to + i, V::add(V::multiply(V::load(to + i), old), part_of));
  }
}

template <class V>
void fold(const Attention& a, const QueryTile& whole, const QueryTile& part) {
  for (int64_t r = 0; r < whole.count; ++r) fold_row<V>(whole, part, r, a.head_dim);
}

// The output of a tile's rows: context / sum.
template <class V>
void divide(const Attention& a, const QueryTile& whole) {
  const int64_t d = a.head_dim;
  for (int64_t r = 0; r < whole.count; ++r) {
    const QueryRow row = row_of(a, whole, r);
    float* out = a.out + (row.token * a.heads + row.head) * d;
    divide_row<V>(whole.context + r * d, whole.sum[r], d, out);
  }
}

}  // namespace planish::PLANISH_ISA
