// Attention of new tokens over the cache, in float32: rotary positions, cache write, softmax.
//
// Keys lie in tiles of 16 slots, [S / 16, D, 16], so that one vector holds 16 scores; values lie
// as [S, D]. Slots are taken 128 at a time with a running maximum and sum (Milakov and Gimelshein
// 2018; FlashAttention), so memory does not grow with the context. Eight query rows that share
// their keys are computed together.
#pragma once

#include "elementwise.h"
#include "float_products.h"
#include "rows.h"
#include "scores.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kSlots = 128;  // slots of one step of the running softmax

// Pairs (i, i + rotary / 2) of one head, or neighbours (2i, 2i + 1), as reference/rope.py.
template <class V>
void rotate(const Attention& a, const float* x, int32_t position, float* out) {
  const int64_t half = a.rotary / 2;
  const float* cos = a.cos + position * half;
  const float* sin = a.sin + position * half;
  int64_t i = a.interleaved ? half : 0;
  for (int64_t pair = 0; pair < i; ++pair) {
    const float first = x[2 * pair], second = x[2 * pair + 1];
    out[2 * pair] = first * cos[pair] - second * sin[pair];
    out[2 * pair + 1] = second * cos[pair] + first * sin[pair];
  }
  for (; i + kTile <= half; i += kTile) {
    const auto c = V::load(cos + i), s = V::load(sin + i);
    const auto first = V::load(x + i), second = V::load(x + half + i);
    V::store(out + i, V::subtract(V::multiply(first, c), V::multiply(second, s)));
    V::store(out + half + i, V::add(V::multiply(second, c), V::multiply(first, s)));
  }
  for (; i < half; ++i) {
    out[i] = x[i] * cos[i] - x[half + i] * sin[i];
    out[half + i] = x[half + i] * cos[i] + x[i] * sin[i];
  }
  for (i = a.rotary; i < a.head_dim; ++i) out[i] = x[i];
}

// One head's new keys and values into their slot. scratch: D + 16 floats.
template <class V>
void write_head(const Attention& a, int64_t token, int64_t head, float* scratch) {
  const int64_t d = a.head_dim, slot = a.positions[token];
  const int64_t place = token / a.tokens * a.kv_heads + head;
  const int64_t key_at = (place * a.slots + (slot & ~15)) * d + (slot & 15);
  const int64_t value_at = (place * a.slots + slot) * d;
  const float* k = a.k + (token * a.kv_heads + head) * d;
  const float* v = a.v + (token * a.kv_heads + head) * d;
  if (a.rotary) {
    rotate<V>(a, k, slot, scratch);
    k = scratch;
  }
  if (!a.int8) {
    float* keys = static_cast<float*>(a.keys) + key_at;
    for (int64_t i = 0; i < d; ++i) keys[i * 16] = k[i];
    __builtin_memcpy(static_cast<float*>(a.values) + value_at, v, sizeof(float) * d);
    return;
  }
  int8_t* keys = static_cast<int8_t*>(a.keys) + key_at;
  int8_t* values = static_cast<int8_t*>(a.values) + value_at;
  int8_t codes[16];
  const float key_scale = int8_scale(absmax<V>(k, d)), value_scale = int8_scale(absmax<V>(v, d));
  for (int64_t i = 0; i < d; i += 16) {
    quantize<V>(k + i, 16, key_scale, codes, 4);
    for (int64_t j = 0; j < 16; ++j) keys[(i + j) * 16] = codes[j];
    quantize<V>(v + i, 16, value_scale, values + i, 4);
  }
  a.key_scales[place * a.slots + slot] = key_scale;
  a.value_scales[place * a.slots + slot] = value_scale;
}

// Tokens first..last of the batch. What pads a chunk repeats its last token at the same position
// and is written once.
template <class V>
void write_slots(const Attention& a, int64_t first, int64_t last, float* scratch) {
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t token = first; token < last; ++token) {
      const bool again = token % a.tokens > 0 && a.positions[token] == a.positions[token - 1];
      if (!again) write_head<V>(a, token, head, scratch);
    }
  }
}

// scores[r][s] *= scales[s]: of keys behind their products, of values before.
template <class V>
void scale_slots(float* scores, int64_t rows, const float* scales, int64_t slots) {
  for (int64_t s = 0; s < slots; s += kTile) {
    const auto scale = V::load(scales + s);
    for (int64_t r = 0; r < rows; ++r) {
      float* place = scores + r * kSlots + s;
      V::store(place, V::multiply(V::load(place), scale));
    }
  }
}

// The largest score of each row so far, and by what the sums until now shrink: exp(old - new).
template <class V, int R>
void raise_largest(const QueryTile& t, const float* scores, int64_t slots, float* fade) {
  alignas(64) float change[kTile] = {};
  for (int64_t r = 0; r < t.count; ++r) {
    const float* row = scores + r * kSlots;
    auto most = V::load(row);
    for (int64_t s = kTile; s < slots; s += kTile) most = V::max(most, V::load(row + s));
    const float largest = V::largest(most);
    if (largest > t.largest[r]) {
      change[r] = t.largest[r] - largest;
      t.largest[r] = largest;
    }
  }
  V::store(fade, exp<V>(V::load(change)));
}

// The slots of a step that one row may read, begin <= s < end; none if begin == end.
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

// exp(score - largest) of one row, zero out of reach; returns their sum.
template <class V>
float weigh(float* row, float largest, int64_t slots, const Reach& in) {
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

// One step: scores of R rows with `slots` slots (a multiple of 16), softmax so far, mixed values.
// Keys and values are floats, or codes whose scales (of this step's slots) are multiplied in here.
template <class V, int R, class W>
void attend_slots(const Attention& a, const QueryTile& t, const float* q, const W* keys,
                  const W* values, const float* key_scales, const float* value_scales,
                  int64_t slot, int64_t slots, float* scores) {
  const int64_t d = a.head_dim, shared = a.heads / a.kv_heads;
  __builtin_memset(scores, 0, sizeof(float) * R * kSlots);
  float_products<V, R, 1, kMostHead>(q, keys, 16, 16 * d, slots / 16, 64 * d, d, scores, kSlots);
  if (key_scales) scale_slots<V>(scores, t.count, key_scales, slots);
  Reach in[R];
  for (int64_t r = 0; r < t.count; ++r) {
    const int64_t position = a.positions[t.batch * a.tokens + (t.first + r) / shared];
    const int64_t head = t.head * shared + (t.first + r) % shared;
    float* row = scores + r * kSlots;
    if (a.slopes || a.cap > 0.0f) adjust<V>(a, head, position, slot, slots, row);
    in[r] = reach(a, position, slot, slots);
    fill_outside(in[r], slots, -__builtin_inff(), row);
  }
  alignas(64) float fade[kTile];
  raise_largest<V, R>(t, scores, slots, fade);
  for (int64_t r = 0; r < t.count; ++r) {
    float* row = scores + r * kSlots;
    if (in[r].begin == in[r].end) {  // nothing to read here
      for (int64_t s = 0; s < slots; ++s) row[s] = 0.0f;
      continue;
    }
    t.sum[r] = t.sum[r] * fade[r] + weigh<V>(row, t.largest[r], slots, in[r]);
    if (fade[r] == 1.0f) continue;
    const auto factor = V::floats(fade[r]);
    float* mixed = t.mixed + r * d;
    for (int64_t i = 0; i < d; i += kTile) {
      V::store(mixed + i, V::multiply(V::load(mixed + i), factor));
    }
  }
  if (value_scales) scale_slots<V>(scores, t.count, value_scales, slots);
  const int64_t written = t.end - slot < slots ? t.end - slot : slots;  // no slot of the past's
  float_products<V, R, 1, kSlots>(scores, values, d, 16, d / 16, 16 * d, written, t.mixed, d);
}

template <class V, int R>
void attend_tile(const Attention& a, const QueryTile& t, float* scratch) {
  const int64_t d = a.head_dim, shared = a.heads / a.kv_heads;
  const int64_t place = t.batch * a.kv_heads + t.head;
  float* q = scratch;                      // [R, 256]
  float* scores = q + R * kMostHead;       // [R, 128]
  const auto divisor = V::floats(a.divisor);
  for (int64_t r = 0; r < t.count; ++r) {
    const int64_t token = t.batch * a.tokens + (t.first + r) / shared;
    const int64_t head = t.head * shared + (t.first + r) % shared;
    const float* x = a.q + (token * a.heads + head) * d;
    float* row = q + r * kMostHead;
    if (a.rotary) rotate<V>(a, x, a.positions[token], row);
    else __builtin_memcpy(row, x, sizeof(float) * d);
    for (int64_t i = 0; i < d; i += 16) V::store(row + i, V::divide(V::load(row + i), divisor));
    t.largest[r] = -__builtin_inff();
    t.sum[r] = 0.0f;
  }
  __builtin_memset(q + t.count * kMostHead, 0, sizeof(float) * (R - t.count) * kMostHead);
  __builtin_memset(t.mixed, 0, sizeof(float) * R * d);
  for (int64_t slot = t.begin; slot < t.end; slot += kSlots) {
    int64_t slots = (t.end - slot + 15) & ~int64_t{15};
    if (slots > kSlots) slots = kSlots;
    const int64_t first = place * a.slots + slot;
    if (a.int8) {
      const int8_t* k = static_cast<const int8_t*>(a.keys) + first * d;
      const int8_t* v = static_cast<const int8_t*>(a.values) + first * d;
      const float *ks = a.key_scales + first, *vs = a.value_scales + first;
      attend_slots<V, R>(a, t, q, k, v, ks, vs, slot, slots, scores);
    } else {
      const float* k = static_cast<const float*>(a.keys) + first * d;
      const float* v = static_cast<const float*>(a.values) + first * d;
      attend_slots<V, R, float>(a, t, q, k, v, nullptr, nullptr, slot, slots, scores);
    }
  }
}

// mixed has room for 8 rows (4, 2, 1 where fewer are counted).
template <class V>
void attend(const Attention& a, const QueryTile& t, float* scratch) {
  if (t.count > 4) attend_tile<V, 8>(a, t, scratch);
  else if (t.count > 2) attend_tile<V, 4>(a, t, scratch);
  else if (t.count > 1) attend_tile<V, 2>(a, t, scratch);
  else attend_tile<V, 1>(a, t, scratch);
}

inline int64_t attention_scratch(const Attention&) {
  return kRowTile * (kMostHead + kSlots);
}

// Parts of the same rows over successive slots into one, and divided: the output.
template <class V>
void combine(const Attention& a, const QueryTile* parts, int64_t count) {
  const QueryTile& first = parts[0];
  const int64_t d = a.head_dim, shared = a.heads / a.kv_heads;
  for (int64_t r = 0; r < first.count; ++r) {
    float largest = first.largest[r];
    for (int64_t p = 1; p < count; ++p) {
      if (parts[p].largest[r] > largest) largest = parts[p].largest[r];
    }
    const int64_t token = first.batch * a.tokens + (first.first + r) / shared;
    const int64_t head = first.head * shared + (first.first + r) % shared;
    float* out = a.out + (token * a.heads + head) * d;
    if (count == 1) {
      const auto divisor = V::floats(first.sum[r]);
      for (int64_t i = 0; i < d; i += 16) {
        V::store(out + i, V::divide(V::load(first.mixed + r * d + i), divisor));
      }
      continue;
    }
    float total = 0.0f;
    for (int64_t p = 0; p < count; ++p) {
      float weight[16];
      V::store(weight, exp<V>(V::floats(parts[p].largest[r] - largest)));
      total += parts[p].sum[r] * weight[0];
      const float* mixed = parts[p].mixed + r * d;
      const auto factor = V::floats(weight[0]);
      for (int64_t i = 0; i < d; i += 16) {
        const auto part = V::multiply(V::load(mixed + i), factor);
        V::store(out + i, p ? V::add(V::load(out + i), part) : part);
      }
    }
    const auto divisor = V::floats(total);
    for (int64_t i = 0; i < d; i += 16) {
      V::store(out + i, V::divide(V::load(out + i), divisor));
    }
  }
}

}  // namespace planish::PLANISH_ISA
