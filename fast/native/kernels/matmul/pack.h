// Rows packed for sixteen lanes: tiles of 8 rows, and tiles of 4, 2 and 1 for the remaining rows.
//
// A tile of R rows consists of codes [steps, R, 4], so that four inputs of each of its rows are
// adjacent in memory, sums of codes [groups, R] and scales [groups or 1, R]. Float rows are stored
// as [inputs, R], and the sums of their groups as [groups, R].
#pragma once

#include "../rows/norm.h"
#include "../rows/quantize.h"
#include "../table.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kRowTile = 8;

// The size of the next row tile if `left` rows remain.
inline int64_t row_tile(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// The arrays in packed rows: the tile that starts at row r begins at codes + r * steps * 4, sums +
// r * groups, scales + r * scale_groups, floats + r * steps * 4, totals + r * groups.
struct Rows {
  int8_t* codes;
  float* scales;  // [groups or 1, R] in each tile
  int32_t* sums;  // [groups, R]: sums of codes, for the zero points
  float* floats;  // float rows instead: [steps * 4, R] in each tile
  float* totals;  // [groups, R] in each tile: sums of inputs, for offsets; or null
  Granularity granularity;
  int64_t rows;
  int64_t steps;   // of 4 inputs, an even number
  int64_t groups;  // of the weights
  int64_t group_inputs;
  int64_t scale_groups;
  const int8_t* zero;  // of the inputs, or null
};

inline int64_t in_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

inline int64_t steps_of(const PackedRows& p) { return ceil_div(p.inputs, 8) * 2; }

inline int64_t scale_groups_of(const PackedRows& p) {
  return p.granularity == Granularity::kGroup ? p.groups : 1;
}

inline int64_t packed_bytes(const PackedRows& p) {
  const int64_t inputs = p.rows * steps_of(p) * 4;
  if (p.granularity == Granularity::kFloat) {
    return inputs * 4 + (p.totals ? p.rows * p.groups * 4 : 0);
  }
  return in_lines(inputs) + in_lines(p.rows * scale_groups_of(p) * 4) + p.rows * p.groups * 4;
}

inline Rows unpack(const PackedRows& p) {
  Rows rows = {};
  rows.granularity = p.granularity;
  rows.rows = p.rows;
  rows.steps = steps_of(p);
  rows.groups = p.groups;
  rows.group_inputs = p.group_inputs;
  rows.scale_groups = scale_groups_of(p);
  rows.zero = p.zero;
  if (p.granularity == Granularity::kFloat) {
    rows.floats = reinterpret_cast<float*>(p.memory);
    if (p.totals) rows.totals = rows.floats + rows.rows * rows.steps * 4;
    return rows;
  }
  uint8_t* scales = p.memory + in_lines(rows.rows * rows.steps * 4);
  rows.codes = reinterpret_cast<int8_t*>(p.memory);
  rows.scales = reinterpret_cast<float*>(scales);
  rows.sums = reinterpret_cast<int32_t*>(scales + in_lines(rows.rows * rows.scale_groups * 4));
  return rows;
}

// A row tile: its first row and its number of rows.
struct RowTile {
  int64_t first, size;
};

inline RowTile tile_of(const Rows& rows, int64_t row) {
  const int64_t whole = rows.rows & ~(kRowTile - 1);
  int64_t first = row < whole ? row & ~(kRowTile - 1) : whole;
  int64_t size = row_tile(rows.rows - first);
  while (row >= first + size) {
    first += size;
    size = row_tile(rows.rows - first);
  }
  return {first, size};
}

template <class V>
void pack_floats(const float* x, int64_t k, const Rows& rows, RowTile tile, int64_t lane) {
  const int64_t padded = rows.steps * 4;
  float* out = rows.floats + tile.first * padded + lane;
  for (int64_t i = 0; i < padded; ++i) out[i * tile.size] = i < k ? x[i] : 0.0f;
  if (!rows.totals) return;
  float* totals = rows.totals + tile.first * rows.groups + lane;
  for (int64_t g = 0; g < rows.groups; ++g) {
    const int64_t start = g * rows.group_inputs, left = k - start;
    const int64_t count = left < rows.group_inputs ? left : rows.group_inputs;
    totals[g * tile.size] = total_of<V>(x + start, count);
  }
}

template <class V>
void pack_codes(const float* x, int64_t k, const Rows& rows, RowTile tile, int64_t lane,
                float scale) {
  int8_t* codes = rows.codes + tile.first * rows.steps * 4 + lane * 4;
  int32_t* sums = rows.sums + tile.first * rows.groups + lane;
  float* scales = rows.scales + tile.first * rows.scale_groups + lane;
  const int64_t size = tile.size, stride = size * 4;
  if (rows.granularity == Granularity::kRow) scale = int8_scale(absmax<V>(x, k));
  for (int64_t s = (k + 3) / 4; s < rows.steps; ++s) __builtin_memset(codes + s * stride, 0, 4);
  for (int64_t g = 0; g < rows.groups; ++g) {
    const int64_t start = g * rows.group_inputs;
    const int64_t count = k - start < rows.group_inputs ? k - start : rows.group_inputs;
    if (rows.granularity == Granularity::kGroup) scale = int8_scale(absmax<V>(x + start, count));
    if (g < rows.scale_groups) scales[g * size] = scale;
    const float* from = x + start;
    int8_t* to = codes + start / 4 * stride;
    if (!rows.zero) sums[g * size] = quantize<V>(from, count, scale, to, stride);
    else sums[g * size] = quantize<V>(from, count, GridAround<V>(scale, *rows.zero), to, stride);
  }
}

template <class V>
void pack_row(const Source& source, const PackedRows& packed, int64_t row, float scale,
              float* scratch) {
  const int64_t k = source.inputs;
  for (int64_t i = k & ~int64_t{15}; i < k + 16; ++i) scratch[i] = 0.0f;
  const float* x = ordered_row<V>(source, row, scratch);
  const Rows rows = unpack(packed);
  const RowTile tile = tile_of(rows, row);
  if (rows.granularity == Granularity::kFloat) pack_floats<V>(x, k, rows, tile, row - tile.first);
  else pack_codes<V>(x, k, rows, tile, row - tile.first, scale);
}

}  // namespace planish::PLANISH_ISA
