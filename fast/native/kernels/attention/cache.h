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
void write_codes(const Attention& a, const Place& place, const float* k, const float* v) {
  const int64_t d = a.head_dim, slot = place.slot;
  const int64_t base = place.index * a.slots * d, at = place.index * a.slots + slot;
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
  const int64_t d = a.head_dim, position = a.positions[token];
  const Place place = locate(a, a.rows ? a.rows[token] : token / a.tokens, head, position);
  const int64_t at = place.index * a.slots + place.slot, value_at = at * d;
  const int64_t key_at = (at & ~int64_t{15}) * d + (at & 15);
  const float* k = a.k + (token * a.kv_heads + head) * d;
  const float* v = a.v + (token * a.kv_heads + head) * d;
  if (a.rotary) {
    rotate<V>(a, k, static_cast<int32_t>(position), scratch);
    k = scratch;
  }
  if (a.codes) {
    write_codes<V>(a, place, k, v);
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
  a.key_scales[at] = key_scale;
  a.value_scales[at] = value_scale;
}

// Whether a token is padding: of no row, or a chunk's last token again, at the same position.
inline bool is_padding(const Attention& a, int64_t token) {
  if (a.rows && a.rows[token] < 0) return true;
  if (token % a.tokens == 0 || a.positions[token] != a.positions[token - 1]) return false;
  return !a.rows || a.rows[token] == a.rows[token - 1];
}

// Writes tokens first..last of the batch, but for padding.
template <class V>
void write_slots(const Attention& a, int64_t first, int64_t last, float* scratch) {
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t token = first; token < last; ++token) {
      if (!is_padding(a, token)) write_head<V>(a, token, head, scratch);
    }
  }
}

}  // namespace planish::PLANISH_ISA
