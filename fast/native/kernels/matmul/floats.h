// Weight-only linears: float rows times dequantized codes, W4A16 and W8A16.
//
// Up to 8 rows: codes are converted to floats in registers. More rows: a panel, a few inputs of
// four tiles, is converted into the nearest cache and multiplied with every row. The scale is
// applied to the sum over a group, the offset to the sum of its inputs, which the packed rows have.
// Both use the same order of operations, so a row's result does not depend on the number of rows.
#pragma once

#include <type_traits>

#include "../table.h"
#include "integer.h"
#include "pack.h"
#include "products.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kPanelTiles = 4;
constexpr int64_t kPanelInputs = 64;
constexpr int64_t kFloatAhead = 1024;  // bytes that each of four streams is prefetched ahead

// What codes become before they are multiplied.
enum class Codes {
  kInt8,     // -128..127
  kBytes,    // 0..255, INT8 with offsets
  kCentred,  // INT4 minus 8
  kZeros,    // INT4 minus the stored zero points
  kNibbles,  // 0..15, INT4 with offsets
};

constexpr bool of_int8(Codes kind) { return kind == Codes::kInt8 || kind == Codes::kBytes; }
constexpr int inputs_of(Codes kind) { return of_int8(kind) ? 4 : 8; }  // of a block

// Calls use(constant) with the kind of a weight's codes.
template <class Use>
PLANISH_INLINE inline void with_codes(const Weight& w, Use&& use) {
  if (w.bits == 8 && w.offset) use(std::integral_constant<Codes, Codes::kBytes>{});
  else if (w.bits == 8) use(std::integral_constant<Codes, Codes::kInt8>{});
  else if (w.offset) use(std::integral_constant<Codes, Codes::kNibbles>{});
  else if (w.zero) use(std::integral_constant<Codes, Codes::kZeros>{});
  else use(std::integral_constant<Codes, Codes::kCentred>{});
}

template <class V>
PLANISH_INLINE inline typename V::Floats float_scale(const Weight& w, int64_t tile, int64_t group) {
  if (!w.row_scale) return group_scale<V>(w, tile, group);
  const float* scale = static_cast<const float*>(w.scale);
  if (w.one_scale) return V::floats(scale[0]);
  const int64_t left = w.outputs - tile * kTile;
  return left >= kTile ? V::load(scale + tile * kTile) : V::load_part(scale + tile * kTile, left);
}

template <class V>
PLANISH_INLINE inline typename V::Floats float_offset(const Weight& w, int64_t tile,
                                                      int64_t group) {
  return load_either<V>(w.offset, w.half_offset, (tile * w.groups + group) * kTile);
}

// zero point - 8, to be subtracted from codes - 8; zero if no zero points are stored.
template <class V, Codes kCodes>
PLANISH_INLINE inline typename V::Floats zero_shift(const Weight& w, int64_t tile, int64_t group) {
  if constexpr (kCodes != Codes::kZeros) return V::floats(0.0f);
  const auto zero = V::widen(w.zero + (tile * w.groups + group) * kTile);
  return V::to_floats(V::subtract(zero, V::ints(8)));
}

// Input i of a block of codes, for 16 outputs, as floats.
template <class V, Codes kCodes, int i>
PLANISH_INLINE inline typename V::Floats convert(typename V::Ints codes, typename V::Floats shift) {
  constexpr int at = i < 4 ? 8 * i : 8 * (i - 4) + 4;
  if constexpr (kCodes == Codes::kBytes) {
    return V::to_floats(V::bits_and(V::template shift_right<8 * i>(codes), V::ints(255)));
  } else if constexpr (kCodes == Codes::kInt8) {
    return V::to_floats(V::template shift_right<24>(V::template shift_left<24 - 8 * i>(codes)));
  } else if constexpr (kCodes == Codes::kNibbles) {
    return V::template nibbles<at>(codes);
  } else if constexpr (kCodes == Codes::kCentred) {
    return V::template centred_nibbles<at>(codes);
  } else {
    return V::subtract(V::template centred_nibbles<at>(codes), shift);
  }
}

// Converts blocks first..last of one tile to floats [inputs, 16].
template <class V, Codes kCodes>
void convert_blocks(const Weight& w, int64_t tile, int64_t group, int64_t first, int64_t last,
                    float* out) {
  const uint8_t* codes = w.codes + tile * w.blocks * kTileBytes;
  const auto shift = zero_shift<V, kCodes>(w, tile, group);
  for (int64_t b = first; b < last; ++b, out += inputs_of(kCodes) * kTile) {
    const auto block = V::load_ints(codes + b * kTileBytes);
    unroll<inputs_of(kCodes)>([&](auto i) PLANISH_INLINE {
      V::store(out + i * kTile, convert<V, kCodes, i>(block, shift));
    });
  }
}

template <class V>
void panel_products(const Rows& rows, int64_t inputs, int64_t first, int64_t count, int64_t tiles,
                    const float* panel, float* sums) {
  constexpr int64_t stride = kPanelTiles * kTile, w_tile = kPanelInputs * kTile;
  for (int64_t row = 0; row < rows.rows;) {
    const int64_t size = row_tile(rows.rows - row);
    const float* x = rows.floats + row * inputs + first * size;
    float* sum = sums + row * stride;
    const auto multiply = [&](auto r) {
      float_products<V, r, r, 1>(x, panel, kTile, w_tile, tiles, 0, count, sum, stride);
    };
    if (size == 8) multiply(std::integral_constant<int, 8>{});
    else if (size == 4) multiply(std::integral_constant<int, 4>{});
    else if (size == 2) multiply(std::integral_constant<int, 2>{});
    else multiply(std::integral_constant<int, 1>{});
    row += size;
  }
}

inline int64_t float_scratch(int64_t rows) {
  return kPanelTiles * kTile * (kPanelInputs + 2 * rows);
}

// Up to four tiles for all rows, and their memory.
struct Panel {
  int64_t tile, tiles;
  float* codes;   // [tiles, inputs, 16]: a few inputs as floats
  float* sums;    // [rows, tiles, 16] of a group
  float* totals;  // [rows, tiles, 16]
};

inline Panel place_panel(int64_t tile, int64_t tiles, int64_t rows, float* scratch) {
  float* sums = scratch + kPanelTiles * kTile * kPanelInputs;
  return {tile, tiles, scratch, sums, sums + kPanelTiles * kTile * rows};
}

// sums = sum of x (q - z), or x q, over one group
template <class V>
void sum_panel_group(const Weight& w, const Rows& rows, const Panel& panel, int64_t group) {
  const int64_t inputs = rows.steps * 4, width = 32 / w.bits, step = kPanelInputs / width;
  __builtin_memset(panel.sums, 0, sizeof(float) * kPanelTiles * kTile * rows.rows);
  const int64_t begin = group * w.group_blocks;
  const int64_t end = begin + w.group_blocks < w.blocks ? begin + w.group_blocks : w.blocks;
  for (int64_t b = begin; b < end; b += step) {
    const int64_t last = b + step < end ? b + step : end;
    for (int64_t c = 0; c < panel.tiles; ++c) {
      float* at = panel.codes + c * kPanelInputs * kTile;
      with_codes(
          w, [&](auto codes) { convert_blocks<V, codes>(w, panel.tile + c, group, b, last, at); });
    }
    panel_products<V>(rows, inputs, b * width, (last - b) * width, panel.tiles, panel.codes,
                      panel.sums);
  }
}

// total + sum * scale, and then + (the sum of the inputs) * offset
template <class V, bool kOffset>
PLANISH_INLINE inline typename V::Floats add_group(typename V::Floats total, typename V::Floats sum,
                                                   typename V::Floats scale, float inputs,
                                                   typename V::Floats offset) {
  total = V::add(total, V::multiply(sum, scale));
  if constexpr (kOffset) total = V::add(total, V::multiply(V::floats(inputs), offset));
  return total;
}

// The sum of the inputs of a row's group.
inline float row_total(const Rows& rows, int64_t row, int64_t group) {
  const RowTile tile = tile_of(rows, row);
  return rows.totals[tile.first * rows.groups + group * tile.size + row - tile.first];
}

// totals += sums * scale + (the sum of the inputs) * offset
template <class V>
void add_panel_group(const Weight& w, const Rows& rows, const Panel& panel, int64_t group) {
  for (int64_t c = 0; c < panel.tiles; ++c) {
    const auto scale = float_scale<V>(w, panel.tile + c, group);
    const auto offset = w.offset ? float_offset<V>(w, panel.tile + c, group) : scale;
    for (int64_t r = 0; r < rows.rows; ++r) {
      float* total = panel.totals + (r * kPanelTiles + c) * kTile;
      const auto sum = V::load(panel.sums + (r * kPanelTiles + c) * kTile);
      const auto before = V::load(total);
      if (w.offset) {
        const float inputs = row_total(rows, r, group);
        V::store(total, add_group<V, true>(before, sum, scale, inputs, offset));
      } else {
        V::store(total, add_group<V, false>(before, sum, scale, 0.0f, offset));
      }
    }
  }
}

// The sum over groups for up to four tiles.
template <class V>
void float_panel(const Weight& w, const Rows& rows, const Output& out, const Panel& panel) {
  __builtin_memset(panel.totals, 0, sizeof(float) * kPanelTiles * kTile * rows.rows);
  for (int64_t g = 0; g < w.groups; ++g) {
    sum_panel_group<V>(w, rows, panel, g);
    add_panel_group<V>(w, rows, panel, g);
  }
  for (int64_t c = 0; c < panel.tiles; ++c) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      finish<V>(w, out, panel.tile + c, r, V::load(panel.totals + (r * kPanelTiles + c) * kTile));
    }
  }
}

// The same for R rows and C tiles, with codes converted in registers.
template <class V, Codes kCodes, int R, int C>
void direct_tile(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row) {
  using F = typename V::Floats;
  constexpr int kInputs = inputs_of(kCodes);
  constexpr bool kOffset = kCodes == Codes::kBytes || kCodes == Codes::kNibbles;
  const float* x = rows.floats + row * rows.steps * 4;
  const float* inputs = kOffset ? rows.totals + row * rows.groups : x;
  const uint8_t* codes[C];
  for (int c = 0; c < C; ++c) codes[c] = w.codes + (tile + c) * w.blocks * kTileBytes;
  F total[R * C];
  unroll<R * C>([&](auto i) PLANISH_INLINE { total[i] = V::floats(0.0f); });
  for (int64_t g = 0; g < w.groups; ++g) {
    F sum[R * C], shift[C];
    unroll<R * C>([&](auto i) PLANISH_INLINE { sum[i] = V::floats(0.0f); });
    unroll<C>([&](auto c) PLANISH_INLINE { shift[c] = zero_shift<V, kCodes>(w, tile + c, g); });
    const int64_t first = g * w.group_blocks;
    const int64_t last = first + w.group_blocks < w.blocks ? first + w.group_blocks : w.blocks;
    for (int64_t b = first; b < last; ++b) {
      typename V::Ints blocks[C];
      unroll<C>([&](auto c) PLANISH_INLINE {
        const uint8_t* block = codes[c] + b * kTileBytes;
        __builtin_prefetch(block + kFloatAhead);
        blocks[c] = V::load_ints(block);
      });
      unroll<kInputs * C>([&](auto j) PLANISH_INLINE {
        constexpr int i = j / C, c = j % C;
        const auto code = convert<V, kCodes, i>(blocks[c], shift[c]);
        unroll<R>([&](auto r) PLANISH_INLINE {
          const auto value = V::floats(x[(b * kInputs + i) * R + r]);
          sum[r * C + c] = V::fma(value, code, sum[r * C + c]);
        });
      });
    }
    unroll<C>([&](auto c) PLANISH_INLINE {
      const F scale = float_scale<V>(w, tile + c, g);
      const F offset = kOffset ? float_offset<V>(w, tile + c, g) : scale;
      unroll<R>([&](auto r) PLANISH_INLINE {
        const int at = r * C + c;
        const float of_row = inputs[kOffset ? g * R + r : 0];
        total[at] = add_group<V, kOffset>(total[at], sum[at], scale, of_row, offset);
      });
    });
  }
  unroll<R * C>([&](auto i)
                    PLANISH_INLINE { finish<V>(w, out, tile + i % C, row + i / C, total[i]); });
}

template <class V, int R, int C>
void direct_part(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row) {
  with_codes(w, [&](auto codes) { direct_tile<V, codes, R, C>(w, rows, out, tile, row); });
}

template <class V, int R>
void direct_tiles(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t count,
                  int64_t row) {
  constexpr int C = R == 1 ? 2 * V::kTiles : R == 8 ? 1 : V::kTiles;  // what registers hold
  const int64_t end = tile + count;
  for (; tile + C <= end; tile += C) direct_part<V, R, C>(w, rows, out, tile, row);
  for (; tile < end; ++tile) direct_part<V, R, 1>(w, rows, out, tile, row);
}

template <class V>
void few_float_rows(const Weight& w, const Rows& rows, const Output& out, int64_t tile,
                    int64_t count) {
  for (int64_t row = 0; row < rows.rows;) {
    const int64_t size = row_tile(rows.rows - row);
    if (size == 8) direct_tiles<V, 8>(w, rows, out, tile, count, row);
    else if (size == 4) direct_tiles<V, 4>(w, rows, out, tile, count, row);
    else if (size == 2) direct_tiles<V, 2>(w, rows, out, tile, count, row);
    else direct_tiles<V, 1>(w, rows, out, tile, count, row);
    row += size;
  }
}

template <class V>
void float_tiles(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t count,
                 float* scratch) {
  if (rows.rows <= kRowTile) {
    few_float_rows<V>(w, rows, out, tile, count);
    return;
  }
  for (const int64_t end = tile + count; tile < end; tile += kPanelTiles) {
    const int64_t tiles = end - tile < kPanelTiles ? end - tile : kPanelTiles;
    float_panel<V>(w, rows, out, place_panel(tile, tiles, rows.rows, scratch));
  }
}

}  // namespace planish::PLANISH_ISA
