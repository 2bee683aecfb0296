// Rows packed for matrix tiles: codes [row tiles, groups, steps, 16, depth], then scales [pairs of
// row tiles, groups or 1, 32].
//
// A step is one product of tiles: 64 inputs, or 32 if groups are not multiples of 64; of floats, 32
// inputs, or 16 in groups of 16, as three tiles of bfloat16s, the low parts first. Groups are
// padded with zeros to whole steps, so it does not matter which weights the padding meets. The last
// pair may lack its second tile; rows that pad a tile are never written out, and their codes are
// any that are in memory. For offsets, the scales of floats are the sums of the groups' inputs.
#pragma once

#include "../rows/norm.h"
#include "../rows/quantize.h"
#include "../table.h"
#include "pack.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kTileRows = 16;
constexpr int64_t kBlockRows = 32;  // of two row tiles, which are multiplied together

constexpr int64_t kFloatParts = 3;

struct TileRows {
  int8_t* codes;
  float* scales;
  int64_t rows;
  bool floats;
  int64_t depth;   // inputs of a step
  int64_t width;   // bytes of a row of a tile
  int64_t steps;   // of a group
  int64_t groups;  // of the weights
  int64_t scale_groups;
  const int8_t* zero;

  explicit TileRows(const PackedRows& p)
      : rows(p.rows),
        floats(p.granularity == Granularity::kFloat),
        groups(p.groups),
        scale_groups(!floats    ? scale_groups_of(p)
                     : p.totals ? p.groups
                                : 0),
        zero(p.zero) {
    depth = floats || (p.groups > 1 && p.group_inputs % 64 != 0) ? 32 : 64;
    if (floats && p.groups > 1 && p.group_inputs % 32 != 0) depth = 16;
    width = floats ? 2 * depth : depth;
    steps = ceil_div(p.group_inputs, depth);
    codes = reinterpret_cast<int8_t*>(p.memory);
    scales = reinterpret_cast<float*>(p.memory + ceil_div(rows, kTileRows) * row_tile_bytes());
  }

  int64_t row_tile_bytes() const { return groups * steps * step_bytes(); }
  int64_t tile_bytes() const { return kTileRows * width; }  // of a part, and of weights
  int64_t step_bytes() const { return (floats ? kFloatParts : 1) * tile_bytes(); }
  int64_t bytes() const {
    const int64_t pairs = ceil_div(rows, kBlockRows);
    return ceil_div(rows, kTileRows) * row_tile_bytes() + pairs * scale_groups * kBlockRows * 4;
  }

  // The 16 rows from `row` on, in one step of a group.
  int8_t* step(int64_t row, int64_t group, int64_t s) const {
    return codes + row / kTileRows * row_tile_bytes() + (group * steps + s) * step_bytes();
  }
  // The scales of the 32 rows from `row` on.
  float* block_scales(int64_t row, int64_t group) const {
    return scales + (row / kBlockRows * scale_groups + group) * kBlockRows;
  }
};

// Quantizes `count` inputs of a group, then zeros to whole steps.
template <class V, class G>
void quantize_group(const float* x, int64_t count, const G& grid, const TileRows& rows, int64_t row,
                    int64_t group) {
  int8_t* codes = rows.step(row, group, 0) + row % kTileRows * rows.depth;
  for (int64_t s = 0; s < rows.steps; ++s, codes += rows.step_bytes(), count -= rows.depth) {
    if (count < rows.depth) __builtin_memset(codes, 0, rows.depth);
    const int64_t here = count < rows.depth ? count : rows.depth;
    for (int64_t i = 0; i < here; i += kTile) {
      V::narrow(codes + i, grid.codes(x + s * rows.depth + i, here - i));
    }
  }
}

// Writes 16 floats as three bfloat16s each, `part` bytes from one to the next: x = low + middle +
// high, exactly unless a part is denormal. Each is what the first 8 bits of the rest hold; a NaN
// remains in at least one of them.
template <class V>
PLANISH_INLINE inline void split_floats(typename V::Floats x, int8_t* low, int64_t part) {
  const auto upper = V::ints(static_cast<int32_t>(0xffff0000));
  for (int64_t i = kFloatParts - 1; i >= 0; --i) {
    const auto bits = V::bits_and(V::bits(x), upper);
    V::narrow_upper(reinterpret_cast<uint16_t*>(low + i * part), bits);
    x = V::subtract(x, V::from_bits(bits));
  }
}

// Splits `count` inputs of a group, then zeros to whole steps.
template <class V>
void split_group(const float* x, int64_t count, const TileRows& rows, int64_t row, int64_t group) {
  const int64_t part = rows.tile_bytes();
  int8_t* parts = rows.step(row, group, 0) + row % kTileRows * rows.width;
  for (int64_t s = 0; s < rows.steps; ++s, parts += rows.step_bytes(), count -= rows.depth) {
    for (int64_t i = 0; i < rows.depth; i += kTile) {
      const auto value = i < count ? V::load(x + s * rows.depth + i) : V::floats(0.0f);
      split_floats<V>(value, parts + 2 * i, part);
    }
  }
}

// Zero scales for the rows that pad the last block.
inline void pad_scales(const TileRows& rows) {
  const int64_t used = (rows.rows - 1) % kBlockRows + 1;
  for (int64_t g = 0; g < rows.scale_groups; ++g) {
    float* scales = rows.block_scales(rows.rows - 1, g);
    for (int64_t r = used; r < kBlockRows; ++r) scales[r] = 0.0f;
  }
}

template <class V>
void pack_tile_row(const Source& source, const PackedRows& packed, int64_t row, float scale,
                   float* scratch) {
  const int64_t k = source.inputs;
  for (int64_t i = k & ~int64_t{15}; i < k + 16; ++i) scratch[i] = 0.0f;
  const float* x = ordered_row<V>(source, row, scratch);
  const TileRows rows(packed);
  if (packed.granularity == Granularity::kRow) scale = int8_scale(absmax<V>(x, k));
  for (int64_t g = 0; g < rows.groups; ++g) {
    const int64_t first = g * packed.group_inputs;
    const int64_t count = k - first < packed.group_inputs ? k - first : packed.group_inputs;
    if (rows.floats) {
      split_group<V>(x + first, count, rows, row, g);
      if (!packed.totals) continue;
      rows.block_scales(row, g)[row % kBlockRows] = total_of<V>(x + first, count);
      continue;
    }
    if (packed.granularity == Granularity::kGroup) scale = int8_scale(absmax<V>(x + first, count));
    if (g < rows.scale_groups) rows.block_scales(row, g)[row % kBlockRows] = scale;
    const float* from = x + first;
    if (!rows.zero) quantize_group<V>(from, count, Grid<V>(scale), rows, row, g);
    else quantize_group<V>(from, count, GridAround<V>(scale, *rows.zero), rows, row, g);
  }
  if (row == rows.rows - 1) pad_scales(rows);
}

}  // namespace planish::PLANISH_ISA
