// Random linears, with codes in plain order and in the kernels' layout.
#pragma once

#include <algorithm>

#include "check_support.h"

namespace planish {

// A linear with codes in plain order, and in the kernels' layout. Buffers have exactly the size
// that the kernels may read, so that an address sanitizer detects the first byte too many.
struct Case {
  int bits;
  int64_t n, k, group, groups;
  std::vector<int> codes;            // [n, k]
  std::vector<int> zeros;            // [n, groups], of INT4
  std::vector<float> scale, offset;  // [n, groups]
  std::vector<int32_t> order;        // [k] or none
  std::vector<int32_t> code_sums;    // [n], as tiles, of INT8
  std::vector<uint8_t> tiles, zero_tiles;
  std::vector<float> scale_tiles, offset_tiles, bias;
  std::vector<uint16_t> halves, offset_halves;  // the tiles as float16, or none
  bool stored_zero, one_scale, row_scale, has_offset;
  bool around;        // static inputs have a zero point
  int8_t input_zero;  // which is this

  Weight weight() const {
    Weight w = {};
    w.bits = bits;
    w.codes = tiles.data();
    w.half_scale = !halves.empty();
    w.scale = scale_tiles.data();
    if (w.half_scale) w.scale = halves.data();
    w.zero = stored_zero ? zero_tiles.data() : nullptr;
    w.half_offset = !offset_halves.empty();
    if (has_offset) w.offset = offset_tiles.data();
    if (w.half_offset) w.offset = offset_halves.data();
    w.order = order.empty() ? nullptr : order.data();
    w.code_sums = around ? code_sums.data() : nullptr;
    w.row_scale = row_scale;
    w.bias = bias.empty() ? nullptr : bias.data();
    w.one_scale = one_scale;
    w.outputs = n;
    w.blocks = ceil_div(k, 32 / bits);
    w.groups = groups;
    w.group_blocks = ceil_div(group, 32 / bits);
    return w;
  }
};

// A float16 of either sign, the smallest ones included, and its bits.
inline float random_half(Random& r, uint16_t& bits) {
  const int exponent = draw(r, 0, 14), fraction = draw(r, 0, 1023), sign = draw(r, 0, 1);
  bits = static_cast<uint16_t>(sign << 15 | exponent << 10 | fraction);
  const float size = exponent == 0 ? std::ldexp(float(fraction), -24)
                                   : std::ldexp(float(1024 + fraction), exponent - 25);
  return sign ? -size : size;
}

inline void draw_codes(Random& r, Case& c) {
  const int extreme = draw(r, 0, 6);
  const bool bytes = c.bits == 8 && c.has_offset;
  const int low = c.bits == 4 || bytes ? 0 : -128, high = c.bits == 4 ? 15 : bytes ? 255 : 127;
  for (int64_t i = 0; i < c.n * c.k; ++i) {
    c.codes.push_back(extreme == 0 ? low : extreme == 1 ? high : draw(r, low, high));
  }
  const int64_t tiles = ceil_div(c.n, 16), width = 32 / c.bits, blocks = ceil_div(c.k, width);
  c.tiles.assign(tiles * blocks * 64, 0);
  c.code_sums.assign(tiles * 16, 0);
  for (int64_t i = 0; i < c.n; ++i) {
    for (int64_t j = 0; j < c.k; ++j) {
      uint8_t& byte = c.tiles[((i / 16 * blocks + j / width) * 16 + i % 16) * 4 + j % 4];
      const int code = c.codes[i * c.k + j];
      byte |= static_cast<uint8_t>(c.bits == 8 ? code : code << (j % 8 / 4 * 4));
      c.code_sums[i] += code;
    }
  }
}

// Values [n, groups] as tiles: floats, or float16s that then replace the values.
inline void tile_values(Random& r, const Case& c, std::vector<float>& values,
                        std::vector<float>& tiles, std::vector<uint16_t>& halves) {
  const int64_t size = ceil_div(c.n, 16) * c.groups * 16;
  tiles.assign(size, 0.0f);
  if (draw(r, 0, 1)) halves.assign(size, 0);
  for (int64_t i = 0; i < c.n * c.groups; ++i) {
    const int64_t output = i / c.groups, group = i % c.groups;
    const int64_t at = (output / 16 * c.groups + group) * 16 + output % 16;
    if (!halves.empty()) values[i] = random_half(r, halves[at]);
    tiles[at] = values[i];
  }
}

inline void draw_scales(Random& r, Case& c) {
  c.scale = floats(r, c.n * c.groups, 0.02f);  // negative ones too
  const int64_t count = c.n * c.groups;
  for (int64_t i = 0; i < count; ++i) c.zeros.push_back(c.stored_zero ? draw(r, 0, 15) : 8);
  if (c.has_offset) {
    c.offset = floats(r, count, 0.1f);
    tile_values(r, c, c.offset, c.offset_tiles, c.offset_halves);
  }
  if (c.row_scale) {
    if (c.one_scale) c.scale.assign(c.n, c.scale[0]);
    c.scale_tiles.assign(c.scale.begin(), c.scale.begin() + (c.one_scale ? 1 : c.n));
    return;
  }
  tile_values(r, c, c.scale, c.scale_tiles, c.halves);
  c.zero_tiles.assign(c.scale_tiles.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t output = i / c.groups, group = i % c.groups;
    const int64_t at = (output / 16 * c.groups + group) * 16 + output % 16;
    c.zero_tiles[at] = static_cast<uint8_t>(c.zeros[i]);
  }
}

inline void draw_order(Random& r, Case& c) {
  c.order.resize(c.k);
  for (int64_t i = 0; i < c.k; ++i) c.order[i] = static_cast<int32_t>(i);
  std::shuffle(c.order.begin(), c.order.end(), r);
}

// Codes, scales and bias of a weight whose other fields are drawn.
inline void draw_values(Random& r, Case& c) {
  draw_codes(r, c);
  draw_scales(r, c);
  if (draw(r, 0, 1)) c.bias = floats(r, c.n);
}

// Weights [n, k]; group: of INT4, k or more if a row is one group.
inline Case make_case(Random& r, int bits, int64_t n, int64_t k, int64_t group) {
  Case c = {};
  c.bits = bits;
  c.n = n;
  c.k = k;
  c.group = bits == 8 || group > k ? k : group;
  c.groups = ceil_div(c.k, c.group);
  c.stored_zero = bits == 4 && draw(r, 0, 1) == 1;
  c.row_scale = bits == 8;
  c.one_scale = bits == 8 && draw(r, 0, 1) == 1;
  c.around = bits == 8 && draw(r, 0, 1) == 1;
  c.input_zero = static_cast<int8_t>(draw(r, -128, 127));
  draw_values(r, c);
  return c;
}

// What other programs write: INT8 in groups, offsets, inputs in another order; for float rows.
inline Case foreign_case(Random& r, int64_t n, int64_t k, int64_t group) {
  Case c = {};
  c.bits = draw(r, 0, 1) ? 8 : 4;
  c.n = n;
  c.k = k;
  c.group = group > k ? k : c.bits == 4 && group == 16 ? 32 : group;
  c.groups = ceil_div(c.k, c.group);
  c.has_offset = draw(r, 0, 1) == 1;
  c.stored_zero = c.bits == 4 && !c.has_offset && draw(r, 0, 1) == 1;
  if (draw(r, 0, 1)) draw_order(r, c);
  draw_values(r, c);
  return c;
}

inline Case random_foreign(Random& r) {
  const int64_t k = draw(r, 1, 300), group = draw(r, 0, 4) == 0 ? k : 16 << draw(r, 0, 3);
  return foreign_case(r, draw(r, 1, 130), k, group);
}

inline Case random_case(Random& r, int bits) {
  const int64_t n = draw(r, 1, 130), k = draw(r, 1, 300);
  return make_case(r, bits, n, k, draw(r, 0, 3) == 0 ? k : 32 << draw(r, 0, 2));
}

}  // namespace planish
