// Weight-only linears: float rows times dequantized codes, W4A16 and W8A16.
//
// Up to 8 rows: codes are converted to floats in registers. More rows: a panel, a few inputs of
// four tiles, is converted into the nearest cache and multiplied with every row. The scale is
// applied to the sum over a group. Both use the same order of operations, so a row's result does
// not depend on the number of rows.
#pragma once

#include "../table.h"
#include "integer.h"
#include "pack.h"
#include "products.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kPanelTiles = 4;
constexpr int64_t kPanelInputs = 64;
constexpr int64_t kFloatAhead = 1024;  // bytes that each of four streams is prefetched ahead

template <class V>
typename V::Floats float_scale(const Weight& w, int64_t tile, int64_t group) {
  if (w.bits == 4) return group_scale<V>(w, tile, group);
  const float* scale = static_cast<const float*>(w.scale);
  if (w.one_scale) return V::floats(scale[0]);
  const int64_t left = w.outputs - tile * kTile;
  return left >= kTile ? V::load(scale + tile * kTile) : V::load_part(scale + tile * kTile, left);
}

// zero point - 8, to be subtracted from codes - 8; zero if no zero points are stored.
template <class V>
PLANISH_INLINE inline typename V::Floats zero_shift(const Weight& w, int64_t tile, int64_t group) {
  if (w.bits == 8 || !w.zero) return V::floats(0.0f);
  const auto zero = V::widen(w.zero + (tile * w.groups + group) * kTile);
  return V::to_floats(V::subtract(zero, V::ints(8)));
}

// Calls use(i, codes minus zero points of 16 outputs as floats) for each input i of one block.
template <class V, int kBits, bool kZero, class Use>
PLANISH_INLINE inline void centred_block(const uint8_t* block, typename V::Floats shift,
                                         Use&& use) {
  const auto codes = V::load_ints(block);
  if constexpr (kBits == 8) {
    unroll<4>([&](auto i) PLANISH_INLINE {
      const auto code = V::template shift_right<24>(V::template shift_left<24 - 8 * i>(codes));
      use(i, V::to_floats(code));
    });
  } else {
    unroll<8>([&](auto i) PLANISH_INLINE {
      constexpr int at = i < 4 ? 8 * i : 8 * (i - 4) + 4;
      const auto code = V::centred_nibbles(V::template shift_right<at>(codes));
      if constexpr (kZero) use(i, V::subtract(code, shift));
      else use(i, code);
    });
  }
}

// Converts blocks first..last of one tile to floats [inputs, 16].
template <class V, int kBits>
void centred_floats(const Weight& w, int64_t tile, int64_t group, int64_t first, int64_t last,
                    float* out) {
  constexpr int kInputs = 32 / kBits;
  const uint8_t* codes = w.codes + tile * w.blocks * kTileBytes;
  const auto shift = zero_shift<V>(w, tile, group);
  for (int64_t b = first; b < last; ++b, out += kInputs * kTile) {
    const auto store = [&](auto i, auto code) PLANISH_INLINE { V::store(out + i * kTile, code); };
    centred_block<V, kBits, true>(codes + b * kTileBytes, shift, store);
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

// sums = sum of x (q - z) over one group
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
      if (w.bits == 8) centred_floats<V, 8>(w, panel.tile + c, group, b, last, at);
      else centred_floats<V, 4>(w, panel.tile + c, group, b, last, at);
    }
    panel_products<V>(rows, inputs, b * width, (last - b) * width, panel.tiles, panel.codes,
                      panel.sums);
  }
}

// totals += sums * w_scale
template <class V>
void add_panel_group(const Weight& w, const Rows& rows, const Panel& panel, int64_t group) {
  for (int64_t c = 0; c < panel.tiles; ++c) {
    const auto scale = float_scale<V>(w, panel.tile + c, group);
    for (int64_t r = 0; r < rows.rows; ++r) {
      const int64_t at = (r * kPanelTiles + c) * kTile;
      const auto part = V::multiply(V::load(panel.sums + at), scale);
      V::store(panel.totals + at, V::add(V::load(panel.totals + at), part));
    }
  }
}

// sum over groups of (sum of x (q - z)) * w_scale, for up to four tiles
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
template <class V, int kBits, bool kZero, int R, int C>
void direct_tile(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row) {
  using F = typename V::Floats;
  constexpr int kInputs = 32 / kBits;
  const float* x = rows.floats + row * rows.steps * 4;
  const uint8_t* codes[C];
  for (int c = 0; c < C; ++c) codes[c] = w.codes + (tile + c) * w.blocks * kTileBytes;
  F total[R * C];
  unroll<R * C>([&](auto i) PLANISH_INLINE { total[i] = V::floats(0.0f); });
  for (int64_t g = 0; g < w.groups; ++g) {
    F sum[R * C], shift[C];
    unroll<R * C>([&](auto i) PLANISH_INLINE { sum[i] = V::floats(0.0f); });
    unroll<C>([&](auto c) PLANISH_INLINE { shift[c] = zero_shift<V>(w, tile + c, g); });
    const int64_t first = g * w.group_blocks;
    const int64_t last = first + w.group_blocks < w.blocks ? first + w.group_blocks : w.blocks;
    for (int64_t b = first; b < last; ++b) {
      unroll<C>([&](auto c) PLANISH_INLINE {
        const uint8_t* block = codes[c] + b * kTileBytes;
        __builtin_prefetch(block + kFloatAhead);
        centred_block<V, kBits, kZero>(block, shift[c], [&](auto i, auto code) PLANISH_INLINE {
          unroll<R>([&](auto r) PLANISH_INLINE {
            const auto value = V::floats(x[(b * kInputs + i) * R + r]);
            sum[r * C + c] = V::fma(value, code, sum[r * C + c]);
          });
        });
      });
    }
    unroll<C>([&](auto c) PLANISH_INLINE {
      const auto scale = float_scale<V>(w, tile + c, g);
      unroll<R>([&](auto r) PLANISH_INLINE {
        total[r * C + c] = V::add(total[r * C + c], V::multiply(sum[r * C + c], scale));
      });
    });
  }
  unroll<R * C>([&](auto i)
                    PLANISH_INLINE { finish<V>(w, out, tile + i % C, row + i / C, total[i]); });
}

template <class V, int R, int C>
void direct_part(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row) {
  if (w.bits == 8) direct_tile<V, 8, false, R, C>(w, rows, out, tile, row);
  else if (w.zero) direct_tile<V, 4, true, R, C>(w, rows, out, tile, row);
  else direct_tile<V, 4, false, R, C>(w, rows, out, tile, row);
}

template <class V, int R>
void direct_tiles(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t count,
                  int64_t row) {
  constexpr int C = R == 1 ? 4 : R == 8 ? 1 : 2;
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
