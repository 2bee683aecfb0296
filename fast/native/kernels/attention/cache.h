// New keys and values: rotary positions, and the slots of the cache that they go to.
//
// Keys are stored in tiles of 16 slots, [S / 16, D, 16], so that one vector holds 16 scores; values
// as [S, D]. An INT8 cache stores codes, and a scale for each slot of a head (docs/spec.md 3). INT8
// attention reads keys and values as tiles of INT8 weights: codes.h.
#pragma once

#include "../rows/quantize.h"
#include "../table.h"

namespace planish::PLANISH_ISA {

// Rotary positions (RoPE, arXiv 2104.09864) of one head: rotates the pairs (i, i + rotary / 2), or
// (2i, 2i + 1) if interleaved, as reference/model/rope.py.
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

// The scale of some floats: calibrated, or of their own.
template <class V>
float slot_scale(const float* x, int64_t count, const float* fixed) {
  return fixed ? *fixed : int8_scale(absmax<V>(x, count));
}

// Writes one head's new key and value as tiles of codes: keys of S outputs and D inputs, values of
// D outputs and S inputs.
template <class V>
void write_codes(const Attention& a, int64_t head_index, int64_t slot, const float* k,
                 const float* v) {
  const int64_t d = a.head_dim, base = head_index * a.slots * d, at = head_index * a.slots + slot;
  int8_t* keys = static_cast<int8_t*>(a.keys) + base + (slot & ~15) * d + (slot & 15) * 4;
  int8_t* values = static_cast<int8_t*>(a.values) + base + slot / 4 * 64 + slot % 4;
  const float key_scale = slot_scale<V>(k, d, a.fixed ? a.fixed + 1 : nullptr);
  const float value_scale = slot_scale<V>(v, d, a.fixed ? a.fixed + 2 : nullptr);
  quantize<V>(k, d, key_scale, keys, 64);
  for (int64_t i = 0; i < d; i += 16) {
    int8_t codes[16];
    quantize<V>(v + i, 16, value_scale, codes, 4);
    for (int64_t j = 0; j < 16; ++j) values[i * a.slots + 4 * j] = codes[j];
  }
  if (a.fixed) return;
  a.key_scales[at] = key_scale;
  a.value_scales[at] = value_scale;
}

// Writes one head's new key and value to their slot. scratch: D + 16 floats.
template <class V>
void write_head(const Attention& a, int64_t token, int64_t head, float* scratch) {
  const int64_t d = a.head_dim, slot = a.positions[token];
  const int64_t head_index = token / a.tokens * a.kv_heads + head;
  const int64_t key_at = (head_index * a.slots + (slot & ~15)) * d + (slot & 15);
  const int64_t value_at = (head_index * a.slots + slot) * d;
  const float* k = a.k + (token * a.kv_heads + head) * d;
  const float* v = a.v + (token * a.kv_heads + head) * d;
  if (a.rotary) {
    rotate<V>(a, k, slot, scratch);
    k = scratch;
  }
  if (a.codes) {
    write_codes<V>(a, head_index, slot, k, v);
    return;
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
  a.key_scales[head_index * a.slots + slot] = key_scale;
  a.value_scales[head_index * a.slots + slot] = value_scale;
}

// Writes tokens first..last of the batch. Padding repeats a chunk's last token at the same
// position, which is written once.
template <class V>
void write_slots(const Attention& a, int64_t first, int64_t last, float* scratch) {
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t token = first; token < last; ++token) {
      const bool again = token % a.tokens > 0 && a.positions[token] == a.positions[token - 1];
      if (!again) write_head<V>(a, token, head, scratch);
    }
  }
}

}  // namespace planish::PLANISH_ISA
