// Products with emulated matrix tiles, to show that the table supports them: rows packed as
// [16][64] bytes, a configuration that each thread makes and releases, and lanes for few rows and
// for floats. AMX would take the same form: a header and a row of instruction_sets.py.
#pragma once

#include <cstdlib>

#include "matmul/lanes.h"

namespace planish::PLANISH_ISA {

// The tiles of one product. Using them before begin_unit() or after end_unit() aborts the program.
struct TileUnit {
  bool configured = false;
  int32_t sums[16][16];

  void check() const {
    if (!configured) std::abort();
  }
  void zero() {
    check();
    __builtin_memset(sums, 0, sizeof(sums));
  }
  // sums[m][n] += a[m][4k + i] * b[k][n][i]: what tdpbssd does.
  void dot(const int8_t (*a)[64], const int8_t (*b)[16][4]) {
    check();
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        for (int i = 0; i < 64; ++i) sums[m][n] += a[m][i] * b[i / 4][n][i % 4];
      }
    }
  }
};

inline TileUnit& tile_unit() {
  static thread_local TileUnit one;
  return one;
}

// [16 rows][64 inputs] each, groups padded to whole tiles: [row tiles, groups, steps], then scales
// [row tiles, groups or 1, 16].
struct TileRows {
  int8_t (*codes)[16][64];
  float (*scales)[16];
  int64_t steps;  // of 64 inputs in a group
  int64_t scale_groups;

  explicit TileRows(const PackedRows& p)
      : steps(ceil_div(p.group_inputs, 64)), scale_groups(scale_groups_of(p)) {
    codes = reinterpret_cast<int8_t (*)[16][64]>(p.memory);
    scales =
        reinterpret_cast<float (*)[16]>(p.memory + ceil_div(p.rows, 16) * p.groups * steps * 1024);
  }
};

template <class V>
struct Tiles : Lanes<V> {
  static constexpr int64_t kRowTile = 16;
  static constexpr int64_t kFewRows = 8;

  static bool by_lanes(const PackedRows& p) {
    return p.rows <= kFewRows || p.granularity == Granularity::kFloat;
  }
  static void begin_unit(const PackedRows& p) { tile_unit().configured = !by_lanes(p); }
  static void end_unit(const PackedRows&) { tile_unit().configured = false; }

  static int64_t packed_bytes(const PackedRows& p) {
    if (by_lanes(p)) return Lanes<V>::packed_bytes(p);
    const int64_t steps = ceil_div(p.group_inputs, 64);
    return ceil_div(p.rows, 16) * (p.groups * steps * 1024 + scale_groups_of(p) * 64);
  }

  static void pack_row(const Source& source, const PackedRows& p, int64_t row, float scale,
                       float* scratch) {
    if (by_lanes(p)) return Lanes<V>::pack_row(source, p, row, scale, scratch);
    const int64_t k = source.inputs, tile = row / 16, lane = row % 16;
    for (int64_t i = k & ~int64_t{15}; i < k + 16; ++i) scratch[i] = 0.0f;
    const float* x = float_row<V>(source, row, scratch);
    const TileRows rows(p);
    if (p.granularity == Granularity::kRow) scale = int8_scale(absmax<V>(x, k));
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t first = g * p.group_inputs;
      const int64_t count = k - first < p.group_inputs ? k - first : p.group_inputs;
      if (p.granularity == Granularity::kGroup) scale = int8_scale(absmax<V>(x + first, count));
      if (g < rows.scale_groups) rows.scales[tile * rows.scale_groups + g][lane] = scale;
      for (int64_t s = 0; s < rows.steps; ++s) {
        int8_t* codes = rows.codes[(tile * p.groups + g) * rows.steps + s][lane];
        const int64_t left = count - s * 64;
        __builtin_memset(codes, 0, 64);
        if (left > 0) quantize<V>(x + first + s * 64, left < 64 ? left : 64, scale, codes, 4);
      }
    }
  }

  static void multiply(const Weight& w, const PackedRows& p, const Output& out, int64_t tile,
                       int64_t count, float* scratch) {
    if (by_lanes(p)) return Lanes<V>::multiply(w, p, out, tile, count, scratch);
    for (const int64_t end = tile + count; tile < end; ++tile) {
      for (int64_t row = 0; row < p.rows; row += 16) multiply_tile(w, p, out, tile, row);
    }
  }

 private:
  // 64 inputs of a group, from its s-th step on, by 16 outputs, minus zero points.
  static void read_weights(const Weight& w, int64_t tile, int64_t group, int64_t s,
                           int8_t (*b)[16][4]) {
    const int64_t first = group * w.group_blocks;
    const int64_t last = first + w.group_blocks < w.blocks ? first + w.group_blocks : w.blocks;
    const uint8_t* zero = w.zero ? w.zero + (tile * w.groups + group) * kTile : nullptr;
    __builtin_memset(b, 0, 1024);
    for (int i = 0; i < 64; ++i) {
      const int64_t width = 32 / w.bits, block = first + (s * 64 + i) / width;
      if (block >= last) return;
      const uint8_t* codes = w.codes + (tile * w.blocks + block) * kTileBytes;
      for (int n = 0; n < 16; ++n) {
        const uint8_t byte = codes[n * 4 + i % 4];
        const int nibble = (i % width < 4 ? byte & 15 : byte >> 4) - (zero ? zero[n] : 8);
        b[i / 4][n][i % 4] = static_cast<int8_t>(w.bits == 8 ? byte : nibble);
      }
    }
  }

  // Sums each group, then applies the float operations in the order of matmul/integer.h.
  static void multiply_tile(const Weight& w, const PackedRows& p, const Output& out, int64_t tile,
                            int64_t row) {
    const TileRows rows(p);
    TileUnit& unit = tile_unit();
    const bool per_group = p.granularity == Granularity::kGroup;
    const float (*scales)[16] = rows.scales + row / 16 * rows.scale_groups;
    alignas(64) float total[16][kTile] = {};
    for (int64_t g = 0; g < p.groups; ++g) {
      unit.zero();
      for (int64_t s = 0; s < rows.steps; ++s) {
        int8_t b[16][16][4];
        read_weights(w, tile, g, s, b);
        unit.dot(rows.codes[(row / 16 * p.groups + g) * rows.steps + s], b);
      }
      for (int64_t r = 0; r < 16; ++r) {
        auto part = V::to_floats(V::load_ints(unit.sums[r]));
        if (w.bits == 4) part = V::multiply(part, group_scale<V>(w, tile, g));
        if (per_group) part = V::multiply(part, V::floats(scales[g][r]));
        V::store(total[r], V::add(V::load(total[r]), part));
      }
    }
    for (int64_t r = 0; r < 16 && row + r < p.rows; ++r) {
      auto value = V::load(total[r]);
      if (!per_group) value = V::multiply(value, V::floats(scales[0][r]));
      if (w.bits == 8) value = V::multiply(value, float_scale<V>(w, tile, 0));
      finish<V>(w, out, tile, row + r, value);
    }
  }
};

}  // namespace planish::PLANISH_ISA
