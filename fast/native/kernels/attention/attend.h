// Attention of query rows over the cache, in float32. Eight rows that share their keys are computed
// together, over 128 slots at a time.
#pragma once

#include "../matmul/products.h"
#include "cache.h"
#include "scores.h"
#include "softmax.h"

namespace planish::PLANISH_ISA {

// One step: scores of R rows with `slots` slots (a multiple of 16), softmax so far, mixed values.
// Keys and values are floats, or codes whose scales (of this step's slots) are multiplied in here.
template <class V, int R, class W>
void attend_slots(const Attention& a, const QueryTile& t, const float* q, const W* keys,
                  const W* values, const float* key_scales, const float* value_scales, int64_t slot,
                  int64_t slots, float* scores) {
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
  float* q = scratch;                 // [R, 256]
  float* scores = q + R * kMostHead;  // [R, 128]
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

inline int64_t attention_scratch(const Attention&) { return kQueryRows * (kMostHead + kSlots); }

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
