// How the threads share a linear: rows are packed once, then tiles of weights are multiplied.
#pragma once

#include <vector>

#include "../table.h"
#include "scratch.h"
#include "team.h"

namespace planish {

// Linears of the same rows.
struct Linears {
  std::vector<Weight> weights;
  std::vector<Output> outputs;
  bool gated;  // two weights, and the one output silu(y_0) * y_1
};

// Rows as the weights want them, without memory yet.
inline PackedRows rows_for(const Weight& w, Granularity granularity, int64_t rows, int64_t inputs) {
  const int64_t group_inputs = w.groups == 1 ? inputs : w.group_blocks * 32 / w.bits;
  return {nullptr, granularity, rows, inputs, w.groups, group_inputs};
}

// The largest magnitude of several; a NaN stays.
inline float larger(float largest, float other) { return other <= largest ? largest : other; }

inline float* row_scratch(int64_t inputs) { return scratch<float>(Scratch::kRow, inputs + 32); }

// One scale for the rows of each sequence, from the largest magnitude of them all.
template <class Pool>
std::vector<float> tensor_scales(const Kernels& kernels, Pool& pool, const Source& source,
                                 int64_t rows, int64_t sequences) {
  const int64_t k = source.inputs, each = rows / sequences;
  std::vector<float> scales(rows);
  run_units(pool, rows, rows * k,
            [&](int64_t row) { scales[row] = kernels.row_absmax(source, row, row_scratch(k)); });
  for (int64_t s = 0; s < sequences; ++s) {
    float largest = 0.0f;
    for (int64_t r = s * each; r < (s + 1) * each; ++r) largest = larger(largest, scales[r]);
    for (int64_t r = s * each; r < (s + 1) * each; ++r) scales[r] = int8_scale(largest);
  }
  return scales;
}

// Every row into its place. given: the static scale, or null.
template <class Pool>
void pack_rows(const Kernels& kernels, Pool& pool, const Source& source, const PackedRows& rows,
               const float* given, int64_t sequences) {
  const int64_t k = source.inputs, each = kernels.row_tile;
  std::vector<float> scales;
  if (rows.granularity == Granularity::kGiven && !given) {
    scales = tensor_scales(kernels, pool, source, rows.rows, sequences);
  }
  run_units(pool, ceil_div(rows.rows, each), rows.rows * k, [&](int64_t tile) {
    const int64_t end = tile * each + each;
    for (int64_t row = tile * each; row < end && row < rows.rows; ++row) {
      const float scale = !scales.empty() ? scales[row] : given ? given[0] : 0.0f;
      kernels.pack_row(source, rows, row, scale, row_scratch(k));
    }
  });
}

// The least weights of one unit: a stream that is read to its end should be worth its beginning.
constexpr int64_t kLeastBytes = 32 * 1024;

// Tiles of one linear, or of gate and up together.
struct Unit {
  size_t linear;
  int64_t tile, count;
};

// How many tiles make a unit: a part of what is left where few rows wait for memory, long streams
// first and short ones last, so that the threads end together; else as many as are multiplied
// together.
struct UnitSize {
  bool few;
  int64_t step, threads;

  int64_t tiles(const Weight& w, int64_t left) const {
    if (!few) return step;
    const int64_t least = ceil_div(kLeastBytes, w.blocks * kTileBytes * step) * step;
    const int64_t part = left / (2 * threads) / step * step;
    return part < least ? least : part;
  }
};

inline UnitSize unit_size(const Kernels& kernels, Granularity granularity, int64_t rows,
                          int64_t threads) {
  const bool floats = granularity == Granularity::kFloat;
  const int64_t step = floats ? kernels.float_step : kernels.integer_step;
  return {rows <= kernels.few_rows, step, threads};
}

// The first `count` linears in units.
inline std::vector<Unit> units_of(const std::vector<Weight>& weights, size_t count,
                                  const UnitSize& size) {
  int64_t left = 0;  // tiles
  for (size_t i = 0; i < count; ++i) left += ceil_div(weights[i].outputs, kTile);
  std::vector<Unit> units;
  for (size_t i = 0; i < count; ++i) {
    const int64_t tiles = ceil_div(weights[i].outputs, kTile);
    for (int64_t tile = 0; tile < tiles;) {
      const int64_t wanted = size.tiles(weights[i], left);
      const int64_t many = wanted < tiles - tile ? wanted : tiles - tile;
      units.push_back({i, tile, many});
      tile += many;
      left -= many;
    }
  }
  return units;
}

// silu(gate) * up of one unit; what both give stays in this thread's memory.
inline void multiply_gated(const Kernels& kernels, const Linears& linears, const PackedRows& rows,
                           const Unit& unit, float* memory) {
  const Weight &gate = linears.weights[0], &up = linears.weights[1];
  const Output& out = linears.outputs[0];
  const int64_t first = unit.tile * kTile, wide = unit.count * kTile;
  const int64_t count = gate.outputs - first < wide ? gate.outputs - first : wide;
  float* gates = scratch<float>(Scratch::kGated, 2 * rows.rows * wide);
  float* ups = gates + rows.rows * wide;
  kernels.multiply(gate, rows, {gates, nullptr, wide, first}, unit.tile, unit.count, memory);
  kernels.multiply(up, rows, {ups, nullptr, wide, first}, unit.tile, unit.count, memory);
  kernels.gate(gates, ups, wide, out.y + first, out.stride, rows.rows, count);
}

inline void multiply_unit(const Kernels& kernels, const Linears& linears, const PackedRows& rows,
                          const Unit& unit) {
  float* memory = scratch<float>(Scratch::kMultiply, kernels.multiply_scratch(rows));
  if (kernels.begin_unit) kernels.begin_unit(rows);
  if (linears.gated) {
    multiply_gated(kernels, linears, rows, unit, memory);
  } else {
    const size_t i = unit.linear;
    kernels.multiply(linears.weights[i], rows, linears.outputs[i], unit.tile, unit.count, memory);
  }
  if (kernels.end_unit) kernels.end_unit(rows);
}

template <class Pool>
void multiply_rows(const Kernels& kernels, Pool& pool, const Linears& linears,
                   const PackedRows& rows) {
  const UnitSize size = unit_size(kernels, rows.granularity, rows.rows, pool.num_threads());
  const size_t count = linears.gated ? 1 : linears.weights.size();
  const std::vector<Unit> units = units_of(linears.weights, count, size);
  team().run(pool, static_cast<int64_t>(units.size()),
             [&](int64_t i) { multiply_unit(kernels, linears, rows, units[i]); });
}

// All linears of the rows of a source. given: the static scale, or null; without one, kGiven means
// a scale for each of the `sequences` that the rows divide into.
template <class Pool>
void run_linears(const Kernels& kernels, Pool& pool, const Linears& linears, const Source& source,
                 PackedRows rows, const float* given, int64_t sequences) {
  rows.memory = scratch<uint8_t>(Scratch::kPacked, kernels.packed_bytes(rows));
  pack_rows(kernels, pool, source, rows, given, sequences);
  multiply_rows(kernels, pool, linears, rows);
}

}  // namespace planish
