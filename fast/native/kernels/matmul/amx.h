// Products by Intel AMX's matrix tiles, for more than 8 rows: 2048 int8 operations a cycle, eight
// times those of AVX-512 VNNI. Few rows wait for memory and keep the sixteen lanes. Results of INT8
// rows are the same bits, because integer sums are exact and the float operations after them come
// in the same order. Float rows are three bfloat16s each, exactly; their sums are rounded less
// often than those of the lanes, and so differ in their last bits (docs/spec.md 4).
#pragma once

#include "lanes.h"
#include "tile_linear.h"

namespace planish::PLANISH_ISA {

template <class V>
struct Amx : Lanes<V> {
  static constexpr int64_t kRowTile = kTileRows;
  static constexpr int64_t kFewRows = 8;
  static constexpr int64_t kIntegerMost = 2 * kMostPairs;
  static constexpr int64_t kFloatMost = 2 * kMostPairs;

  static bool allowed() { return may_use_tiles(); }
  static bool by_lanes(const PackedRows& p) {
    return p.rows <= kFewRows || (p.groups > 1 && p.group_inputs > kShiftedInputs) ||
           (p.groups == 1 && p.totals);
  }

  // Other code of this thread may use tiles too, so a unit configures and releases them: 0.1 us.
  static void begin_unit(const PackedRows& p) {
    if (by_lanes(p)) return;
    const int64_t width = TileRows(p).width;
    TileConfig config;
    for (int tile = 0; tile < 4; ++tile) config.set(tile, kTileRows, kTileBytes);
    for (int tile = 4; tile < 6; ++tile) config.set(tile, kTileRows, width);
    for (int tile = 6; tile < 8; ++tile) config.set(tile, static_cast<int>(width / 4), kTileBytes);
    configure_tiles(config);
  }
  static void end_unit(const PackedRows& p) {
    if (!by_lanes(p)) release_tiles();
    V::end_streams();
  }

  static int64_t packed_bytes(const PackedRows& p) {
    return by_lanes(p) ? Lanes<V>::packed_bytes(p) : TileRows(p).bytes();
  }
  static void pack_row(const Source& source, const PackedRows& p, int64_t row, float scale,
                       float* scratch) {
    if (by_lanes(p)) Lanes<V>::pack_row(source, p, row, scale, scratch);
    else pack_tile_row<V>(source, p, row, scale, scratch);
  }
  static int64_t multiply_scratch(const PackedRows& p) {
    return by_lanes(p) ? Lanes<V>::multiply_scratch(p) : TileScratch(p, nullptr).floats();
  }

  static void multiply(const Weight& w, const PackedRows& p, const Output& out, int64_t tile,
                       int64_t count, float* memory) {
    if (by_lanes(p)) return Lanes<V>::multiply(w, p, out, tile, count, memory);
    const TileRows rows(p);
    const TileCall call = {w, rows, out};
    const TileScratch scratch(p, memory);
    const int64_t most = 2 * pairs_at_once(p);
    for (const int64_t end = tile + count; tile < end; tile += most) {
      const int64_t some = end - tile < most ? end - tile : most;
      if (w.offset) run_floats<V, After::kOffset>(call, scratch, tile, some);
      else if (rows.floats && p.groups > 1) {
        run_floats<V, After::kFloatGroup>(call, scratch, tile, some);
      } else if (rows.floats) run_tiles<V, After::kFloat, 4>(call, scratch, tile, some);
      else if (rows.zero) run_tiles<V, After::kInt8Around, 4>(call, scratch, tile, some);
      else if (w.bits == 8) run_tiles<V, After::kInt8, 4>(call, scratch, tile, some);
      else if (p.groups == 1) run_tiles<V, After::kInt4, 4>(call, scratch, tile, some);
      else if (rows.scale_groups > 1) run_groups<V, After::kGroup>(call, scratch, tile, some);
      else run_groups<V, After::kToken>(call, scratch, tile, some);
    }
  }

  // `rounds` times 2048 operations; a product of tiles has 32,768.
  static int32_t multiply_registers(int64_t rounds) {
    const int64_t products = rounds / 16;
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.set(tile, kTileRows, kTileBytes);
    configure_tiles(config);
    for (int64_t i = 0; i < products; i += 4) {
      dot_tiles<0, 4, 6>();
      dot_tiles<1, 4, 7>();
      dot_tiles<2, 5, 6>();
      dot_tiles<3, 5, 7>();
    }
    alignas(64) int32_t sums[kTileRows * kTile];
    store_tile<0>(sums, kTileBytes);
    release_tiles();
    return sums[0];
  }
};

}  // namespace planish::PLANISH_ISA
