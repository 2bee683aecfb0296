// Attention as one FFI call: the cache is written, then all threads share rows and slots.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ffi_buffers.h"
#include "kernels.h"
#include "parallel.h"

namespace planish {

constexpr int64_t kSegment = 256;  // slots that one unit of decoding reads
constexpr int64_t kBegin = 128;    // units begin at multiples of so many slots

// Query rows of every key-value head, 8 at a time, over the slots that any of them may read; one
// token at a time also splits the slots.
inline void attend_all(const Kernels& kernels, ffi::ThreadPool& pool, const Attention& a) {
  const int64_t rows = a.tokens * (a.heads / a.kv_heads), shared = a.heads / a.kv_heads;
  const int64_t d = a.head_dim, tiles = ceil_div(rows, kRowTile);
  const int64_t reach = a.window + kBegin - 1 < a.slots ? a.window + kBegin - 1 : a.slots;
  const int64_t segments = a.tokens == 1 ? ceil_div(reach, kSegment) : 1;
  const int64_t groups = a.batch * a.kv_heads * tiles;
  const int64_t each = kRowTile * (d + 2);
  float* memory = segments > 1 ? scratch<float>(6, groups * segments * each) : nullptr;
  auto part = [&](int64_t group, int64_t segment, float* place) {
    QueryTile t = {};
    t.batch = group / (a.kv_heads * tiles);
    t.head = group / tiles % a.kv_heads;
    t.first = group % tiles * kRowTile;
    t.count = rows - t.first < kRowTile ? rows - t.first : kRowTile;
    t.largest = place;
    t.sum = place + kRowTile;
    t.mixed = place + 2 * kRowTile;
    int64_t begin = a.slots, end = 0;
    for (int64_t r = t.first; r < t.first + t.count; ++r) {
      const int64_t seen = a.positions[t.batch * a.tokens + r / shared] + 1;
      if (seen > end) end = seen;
      if (seen - a.window < begin) begin = seen - a.window;
    }
    t.begin = (begin < 0 ? 0 : begin / kBegin * kBegin) + segment * kSegment;
    t.end = segments > 1 && end > t.begin + kSegment ? t.begin + kSegment : end;
    return t;
  };
  if (segments == 1) {
    team().run(pool, groups, [&](int64_t group) {
      float* place = scratch<float>(7, each + kernels.attention_scratch(a));
      const QueryTile t = part(groups - 1 - group, 0, place);  // the longest first
      kernels.attend(a, t, place + each);
      kernels.combine(a, &t, 1);
    });
    return;
  }
  team().run(pool, groups * segments, [&](int64_t unit) {
    const QueryTile t = part(unit / segments, unit % segments, memory + unit * each);
    if (t.begin < t.end) kernels.attend(a, t, scratch<float>(7, kernels.attention_scratch(a)));
  });
  std::vector<QueryTile> parts;
  for (int64_t group = 0; group < groups; ++group) {
    parts.clear();
    for (int64_t s = 0; s < segments; ++s) {
      const QueryTile t = part(group, s, memory + (group * segments + s) * each);
      if (t.begin < t.end) parts.push_back(t);
    }
    kernels.combine(a, parts.data(), static_cast<int64_t>(parts.size()));
  }
}

// Buffers: q, k, v, positions, cos and sin (if rotary > 0), keys, values (with their scales if
// int8), which come back as results in the same memory. Results: mixed, keys, values (, scales).
inline ffi::Error attention(ffi::ThreadPool pool, std::string_view isa, int64_t heads, int64_t kv_heads,
                     int64_t head_dim, int64_t rotary, bool interleaved, bool int8, float divisor,
                     int64_t window, ffi::Span<const float> slopes, bool divided, bool bfloat16,
                     float cap, ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 16 || head_dim % 16 != 0 ||
      head_dim > kMostHead ||
      rotary < 0 || rotary > head_dim || rotary % 2 != 0) {
    in.fail("heads must be a multiple of key-value heads, head_dim of 16 up to 256, rotary even");
    return in.error();
  }
  Attention a = {};
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.head_dim = head_dim;
  a.rotary = rotary;
  a.int8 = int8;
  a.interleaved = interleaved;
  a.divisor = divisor;
  a.slopes = slopes.size() > 0 ? slopes.begin() : nullptr;
  a.divided = divided;
  a.bfloat16 = bfloat16;
  a.cap = cap;
  if (!(divisor > 0.0f) || !(cap >= 0.0f) || window < 0) in.fail("divisor, cap or window negative");
  if (slopes.size() != 0 && static_cast<int64_t>(slopes.size()) != heads) {
    in.fail("slopes are " + std::to_string(slopes.size()) + ", expected one for each head");
  }
  ffi::AnyBuffer* q = in.next("q", {ffi::DataType::F32}, -1);
  if (!q || q->dimensions().size() != 3 || q->dimensions()[2] != heads * head_dim) {
    in.fail("q must be [B, T, heads * head_dim]");
    return in.error();
  }
  a.batch = q->dimensions()[0];
  a.tokens = q->dimensions()[1];
  a.q = static_cast<const float*>(q->untyped_data());
  const int64_t count = a.batch * a.tokens;
  a.k = in.data<float>("k", ffi::DataType::F32, count * kv_heads * head_dim);
  a.v = in.data<float>("v", ffi::DataType::F32, count * kv_heads * head_dim);
  a.positions = in.data<int32_t>("positions", ffi::DataType::S32, count);
  int64_t table = 0;
  if (rotary > 0) {
    ffi::AnyBuffer* cos = in.next("cos", {ffi::DataType::F32}, -1);
    if (!cos) return in.error();
    table = static_cast<int64_t>(cos->element_count()) / (rotary / 2);
    a.cos = static_cast<const float*>(cos->untyped_data());
    a.sin = in.data<float>("sin", ffi::DataType::F32, static_cast<int64_t>(cos->element_count()));
  }
  const auto type = int8 ? ffi::DataType::S8 : ffi::DataType::F32;
  ffi::AnyBuffer* keys = in.next("keys", {type}, -1);
  const int64_t slot_size = a.batch * kv_heads * head_dim;
  if (!keys || slot_size < 1 || keys->element_count() % (slot_size * 16) != 0) {
    in.fail("keys must be [B, K, S / 16, D, 16]");
    return in.error();
  }
  const int64_t size = static_cast<int64_t>(keys->element_count());
  a.slots = size / slot_size;
  a.window = window > 0 && window < a.slots ? window : a.slots;
  const int64_t scales = a.batch * kv_heads * a.slots;
  in.data<void>("values", type, size);
  if (int8) {
    in.data<float>("key scales", ffi::DataType::F32, scales);
    in.data<float>("value scales", ffi::DataType::F32, scales);
  }
  a.out = in.result<float>("mixed", ffi::DataType::F32, count * heads * head_dim);
  a.keys = in.result<void>("keys", type, size);
  a.values = in.result<void>("values", type, size);
  if (int8) {
    a.key_scales = in.result<float>("key scales", ffi::DataType::F32, scales);
    a.value_scales = in.result<float>("value scales", ffi::DataType::F32, scales);
  }
  in.end();
  if (!in.good()) return in.error();
  for (int64_t i = 0; i < count; ++i) {
    if (a.positions[i] < 0 || a.positions[i] >= a.slots || (rotary > 0 && a.positions[i] >= table)) {
      return ffi::Error::InvalidArgument("planish: position " + std::to_string(a.positions[i]) +
                                         " lies outside of " + std::to_string(a.slots) + " slots");
    }
  }
  if (keys->untyped_data() != a.keys) {
    return ffi::Error::Internal("planish: the cache was not handed on in place");
  }
  auto write = [&](int64_t unit) {  // 16 tokens fill one tile of keys
    const int64_t first = unit * kTile, last = first + kTile < count ? first + kTile : count;
    kernels->write_slots(a, first, last, scratch<float>(4, head_dim + 16));
  };
  const int64_t units = ceil_div(count, kTile);
  if (count * kv_heads * head_dim <= kSerialInputs) {
    for (int64_t unit = 0; unit < units; ++unit) write(unit);
  } else {
    team().run(pool, units, write);
  }
  attend_all(*kernels, pool, a);
  return ffi::Error::Success();
}

}  // namespace planish
