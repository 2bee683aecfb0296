// Weight-only linears: float rows times dequantized codes, W4A16 and W8A16.
//
// A few inputs of four tiles at a time become floats in the nearest cache and are multiplied with
// every row; the scale comes after the sum over a group. The order of operations is the same for
// any number of rows, so a row's result does not depend on its batch.
#pragma once

#include "float_products.h"
#include "integer_linear.h"
#include "kernels.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kPanelTiles = 4;
constexpr int64_t kPanelInputs = 64;

// Codes minus zero points of blocks first..last of one tile, as floats [inputs, 16].
template <class V>
void centred_floats(const Weight& w, int64_t tile, int64_t group, int64_t first, int64_t last,
                    float* out) {
  const uint8_t* codes = w.codes + tile * w.blocks * kTileBytes;
  if (w.bits == 8) {
    for (int64_t b = first; b < last; ++b, out += 4 * kTile) {
      __builtin_prefetch(codes + b * kTileBytes + kAhead);
      const auto four = V::load_ints(codes + b * kTileBytes);
      unroll<4>([&](auto i) PLANISH_INLINE {
        const auto code = V::template shift_right<24>(V::template shift_left<24 - 8 * i>(four));
        V::store(out + i * kTile, V::to_floats(code));
      });
    }
    return;
  }
  auto shift = V::floats(0.0f);  // of a zero point that is not 8
  if (w.zero) {
    const auto zero = V::widen(w.zero + (tile * w.groups + group) * kTile);
    shift = V::to_floats(V::subtract(zero, V::ints(8)));
  }
  for (int64_t b = first; b < last; ++b, out += 8 * kTile) {
    __builtin_prefetch(codes + b * kTileBytes + kAhead);
    const auto eight = V::load_ints(codes + b * kTileBytes);
    unroll<8>([&](auto i) PLANISH_INLINE {
      constexpr int at = i < 4 ? 8 * i : 8 * (i - 4) + 4;
      const auto code = V::centred_nibbles(V::template shift_right<at>(eight));
      V::store(out + i * kTile, V::subtract(code, shift));
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
    if (size == 8) float_products<V, 8, 8, 1>(x, panel, kTile, w_tile, tiles, count, sum, stride);
    else if (size == 4) float_products<V, 4, 4, 1>(x, panel, kTile, w_tile, tiles, count, sum, stride);
    else if (size == 2) float_products<V, 2, 2, 1>(x, panel, kTile, w_tile, tiles, count, sum, stride);
    else float_products<V, 1, 1, 1>(x, panel, kTile, w_tile, tiles, count, sum, stride);
    row += size;
  }
}

template <class V>
typename V::Floats float_scale(const Weight& w, int64_t tile, int64_t group) {
  if (w.bits == 4) return group_scale<V>(w, tile, group);
  const float* scale = static_cast<const float*>(w.scale);
  if (w.one_scale) return V::floats(scale[0]);
  const int64_t left = w.outputs - tile * kTile;
  return left >= kTile ? V::load(scale + tile * kTile) : V::load_part(scale + tile * kTile, left);
}

inline int64_t float_scratch(const Rows& rows) {
  return kPanelTiles * kTile * (kPanelInputs + 2 * rows.rows);
}

// sum over groups of (sum of x (q - z)) * w_scale, for up to four tiles
template <class V>
void float_panel(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t tiles,
                 float* scratch) {
  constexpr int64_t stride = kPanelTiles * kTile;
  const int64_t inputs = rows.steps * 4, width = 32 / w.bits;
  float* panel = scratch;
  float* sums = panel + stride * kPanelInputs;
  float* totals = sums + stride * rows.rows;
  __builtin_memset(totals, 0, sizeof(float) * stride * rows.rows);
  for (int64_t g = 0; g < w.groups; ++g) {
    __builtin_memset(sums, 0, sizeof(float) * stride * rows.rows);
    const int64_t begin = g * w.group_blocks;
    const int64_t end = begin + w.group_blocks < w.blocks ? begin + w.group_blocks : w.blocks;
    for (int64_t b = begin; b < end; b += kPanelInputs / width) {
      const int64_t last = b + kPanelInputs / width < end ? b + kPanelInputs / width : end;
      for (int64_t c = 0; c < tiles; ++c) {
        centred_floats<V>(w, tile + c, g, b, last, panel + c * kPanelInputs * kTile);
      }
      panel_products<V>(rows, inputs, b * width, (last - b) * width, tiles, panel, sums);
    }
    for (int64_t c = 0; c < tiles; ++c) {
      const auto scale = float_scale<V>(w, tile + c, g);
      for (int64_t r = 0; r < rows.rows; ++r) {
        const int64_t at = r * stride + c * kTile;
        const auto part = V::multiply(V::load(sums + at), scale);
        V::store(totals + at, V::add(V::load(totals + at), part));
      }
    }
  }
  for (int64_t c = 0; c < tiles; ++c) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      finish<V>(w, out, tile + c, r, V::load(totals + r * stride + c * kTile));
    }
  }
}

template <class V>
void float_tiles(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t count,
                 float* scratch) {
  for (const int64_t end = tile + count; tile < end; tile += kPanelTiles) {
    float_panel<V>(w, rows, out, tile, end - tile < kPanelTiles ? end - tile : kPanelTiles, scratch);
  }
}

}  // namespace planish::PLANISH_ISA
