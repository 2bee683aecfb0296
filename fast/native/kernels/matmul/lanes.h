// Products with sixteen lanes, for every instruction set without matrix tiles. A set that has tiles
// derives its struct from this one, and keeps it for few rows and for floats (docs/kernels.md).
#pragma once

#include "floats.h"
#include "integer.h"
#include "pack.h"

namespace planish::PLANISH_ISA {

template <class V>
struct Lanes {
  static constexpr int64_t kRowTile = PLANISH_ISA::kRowTile;
  static constexpr int64_t kFewRows = kRowTile;
  static constexpr int64_t kIntegerStep = 2;
  static constexpr int64_t kIntegerMost = kIntegerStep;
  static constexpr int64_t kFloatStep = kPanelTiles;
  static constexpr int64_t kFloatMost = kFloatStep;
  static constexpr void (*begin_unit)(const PackedRows&) = nullptr;

  // Whether the system lets this process use the set; asked once.
  static bool allowed() { return true; }
  static void end_unit(const PackedRows&) { V::end_streams(); }
  static int64_t packed_bytes(const PackedRows& packed) {
    return PLANISH_ISA::packed_bytes(packed);
  }
  static void pack_row(const Source& source, const PackedRows& packed, int64_t row, float scale,
                       float* scratch) {
    PLANISH_ISA::pack_row<V>(source, packed, row, scale, scratch);
  }
  static int64_t multiply_scratch(const PackedRows& packed) {
    return packed.granularity == Granularity::kFloat ? float_scratch(packed.rows) : 0;
  }
  static void multiply(const Weight& w, const PackedRows& packed, const Output& out, int64_t tile,
                       int64_t count, float* scratch) {
    const Rows rows = unpack(packed);
    if (rows.granularity == Granularity::kFloat) {
      float_tiles<V>(w, rows, out, tile, count, scratch);
    } else {
      integer_tiles<V>(w, rows, out, tile, count);
    }
  }
  static int32_t multiply_registers(int64_t rounds) {
    return PLANISH_ISA::multiply_registers<V>(rounds);
  }
};

}  // namespace planish::PLANISH_ISA
