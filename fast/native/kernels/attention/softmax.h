// The running softmax over slots, 128 at a time: it keeps the largest score and the sum so far, so
// memory does not grow with the context. Sources: Milakov and Gimelshein 2018, arXiv 1805.02867;
// FlashAttention, arXiv 2205.14135.
#pragma once

#include "../table.h"
#include "../vector/functions.h"

namespace planish::PLANISH_ISA {

// scores[r][s] *= scales[s]: key scales after their products, value scales before theirs.
template <class V>
void scale_slots(float* scores, int64_t rows, const float* scales, int64_t slots) {
  for (int64_t s = 0; s < slots; s += kTile) {
    const auto scale = V::load(scales + s);
    for (int64_t r = 0; r < rows; ++r) {
      float* at = scores + r * kSlots + s;
      V::store(at, V::multiply(V::load(at), scale));
    }
  }
}

template <class V>
float largest_score(const float* row, int64_t slots) {
  auto most = V::load(row);
  for (int64_t s = kTile; s < slots; s += kTile) most = V::max(most, V::load(row + s));
  return V::largest(most);
}

// Updates the largest score of each row. rescale: exp(old - new), the factor for its earlier sums.
template <class V, int R>
void raise_largest(const QueryTile& t, const float* scores, int64_t slots, float* rescale) {
  alignas(64) float change[kTile] = {};
  for (int64_t r = 0; r < t.count; ++r) {
    const float largest = largest_score<V>(scores + r * kSlots, slots);
    if (largest > t.largest[r]) {
      change[r] = t.largest[r] - largest;
      t.largest[r] = largest;
    }
  }
  V::store(rescale, exp<V>(V::load(change)));
}

// The slots of a step that one row may read: begin <= s < end, none if begin == end.
struct Reach {
  int64_t begin, end;
};

inline Reach reach(const Attention& a, int64_t position, int64_t slot, int64_t slots) {
  int64_t end = position + 1 - slot, begin = end - a.window;
  end = end < 0 ? 0 : end < slots ? end : slots;
  begin = begin < 0 ? 0 : begin < end ? begin : end;
  return {begin, end};
}

inline void fill_outside(const Reach& in, int64_t slots, float value, float* row) {
  for (int64_t s = 0; s < in.begin; ++s) row[s] = value;
  for (int64_t s = in.end; s < slots; ++s) row[s] = value;
}

// Replaces the scores of one row by exp(score - largest), zero out of reach; returns their sum.
template <class V>
float exp_row(float* row, float largest, int64_t slots, const Reach& in) {
  const auto shift = V::floats(largest);
  auto total = V::floats(0.0f);
  for (int64_t s = 0; s < slots; s += kTile) {
    const auto e = exp<V>(V::subtract(V::load(row + s), shift));
    V::store(row + s, e);
    total = V::add(total, e);
  }
  if (in.end - in.begin == slots) return V::sum(total);
  fill_outside(in, slots, 0.0f, row);
  total = V::floats(0.0f);
  for (int64_t s = 0; s < slots; s += kTile) total = V::add(total, V::load(row + s));
  return V::sum(total);
}

}  // namespace planish::PLANISH_ISA
