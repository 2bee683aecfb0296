// How the threads share a linear: they pack the rows once, then multiply tiles of weights.
#pragma once

#include <algorithm>
#include <vector>

#include "../table.h"
#include "scratch.h"
#include "team.h"

namespace planish {

// Linears of the same rows.
struct Linears {
  std::vector<Weight> weights;
  std::vector<Output> outputs;
  bool gated;                         // two weights, and the one output silu(y_0) * y_1
  std::vector<PackedRows> rows = {};  // of each weight; those of equal orders share memory
};

// Rows packed for weights of the same groups, without memory yet.
inline PackedRows rows_for(const std::vector<Weight>& weights, Granularity granularity,
                           int64_t rows, int64_t inputs, const int8_t* zero = nullptr) {
  const Weight& w = weights[0];
  const int64_t group_inputs = w.groups == 1 ? inputs : w.group_blocks * 32 / w.bits;
  bool totals = false;
  for (const Weight& each : weights) totals = totals || each.offset;
  return {nullptr, granularity, rows, inputs, w.groups, group_inputs, totals, zero};
}

// Whether two weights read the inputs in the same order.
inline bool same_order(const Weight& a, const Weight& b, int64_t inputs) {
  if (!a.order || !b.order) return a.order == b.order;
  return std::equal(a.order, a.order + inputs, b.order);
}

// The larger of two magnitudes; NaN if either is NaN.
inline float larger(float largest, float other) { return other <= largest ? largest : other; }

inline float* row_scratch(int64_t inputs) {
  return scratch<float>(Scratch::kRow, 2 * (inputs + 32));
}

// per_tensor scales: one for all rows of a sequence, from their largest magnitude.
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

// Packs every row. given: the static scale, or null.
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

// The fewest bytes of weights in one unit, so that starting a stream pays.
constexpr int64_t kLeastBytes = 32 * 1024;

// `count` tiles of one linear, or of both gate and up.
struct Unit {
  size_t linear;
  int64_t tile, count;
};

// How many tiles make a unit: a fraction of those that remain, long units first and short ones
// last, so that all threads finish at about the same time. With few rows a unit has at least as
// many as make a stream, with many at least those that the instruction set multiplies at a time,
// and at most those that share what it reads of the rows.
struct UnitSize {
  bool few;
  int64_t step, most, threads;

  int64_t tiles(const Weight& w, int64_t remaining) const {
    const int64_t share = remaining / (2 * threads) / step * step;
    if (!few) return share < step ? step : share > most ? most : share;
    const int64_t least = ceil_div(kLeastBytes, w.blocks * kTileBytes * step) * step;
    return share < least ? least : share;
  }
};

inline UnitSize unit_size(const Kernels& kernels, Granularity granularity, int64_t rows,
                          int64_t threads) {
  const bool floats = granularity == Granularity::kFloat;
  const int64_t step = floats ? kernels.float_step : kernels.integer_step;
  return {rows <= kernels.few_rows, step, floats ? kernels.float_most : kernels.integer_most,
          threads};
}

// Divides the first `count` linears into units.
inline std::vector<Unit> units_of(const std::vector<Weight>& weights, size_t count,
                                  const UnitSize& size) {
  int64_t remaining = 0;  // tiles
  for (size_t i = 0; i < count; ++i) remaining += ceil_div(weights[i].outputs, kTile);
  std::vector<Unit> units;
  for (size_t i = 0; i < count; ++i) {
    const int64_t tiles = ceil_div(weights[i].outputs, kTile);
    for (int64_t tile = 0; tile < tiles;) {
      const int64_t wanted = size.tiles(weights[i], remaining);
      const int64_t many = wanted < tiles - tile ? wanted : tiles - tile;
      units.push_back({i, tile, many});
      tile += many;
      remaining -= many;
    }
  }
  return units;
}

constexpr int64_t kNearBytes = int64_t{2} << 20;  // that a core's caches may hold

// Whether an output is written past the caches: it is large, and its rows are whole lines.
inline bool streams(const Output& out, int64_t rows) {
  const int64_t row_bytes = out.stride * static_cast<int64_t>(sizeof(float));
  return rows * row_bytes > kNearBytes && row_bytes % 64 == 0 &&
         reinterpret_cast<uintptr_t>(out.y) % 64 == 0;
}

// silu(gate) * up of one unit; the outputs of gate and up stay in this thread's scratch memory.
inline void multiply_gated(const Kernels& kernels, const Linears& linears, const Unit& unit,
                           float* memory) {
  const Weight &gate = linears.weights[0], &up = linears.weights[1];
  const PackedRows &rows = linears.rows[0], &rows_of_up = linears.rows[1];
  Output out = linears.outputs[0];
  const int64_t first = unit.tile * kTile, wide = unit.count * kTile;
  const int64_t count = gate.outputs - first < wide ? gate.outputs - first : wide;
  float* gates = scratch<float>(Scratch::kGated, 2 * rows.rows * wide);
  float* ups = gates + rows.rows * wide;
  kernels.multiply(gate, rows, {gates, nullptr, wide, first}, unit.tile, unit.count, memory);
  kernels.multiply(up, rows_of_up, {ups, nullptr, wide, first}, unit.tile, unit.count, memory);
  out.first = first;
  out.stream = streams(out, rows.rows);
  kernels.gate(gates, ups, wide, out, rows.rows, count);
}

inline void multiply_unit(const Kernels& kernels, const Linears& linears, const Unit& unit) {
  const PackedRows& rows = linears.rows[unit.linear];
  float* memory = scratch<float>(Scratch::kMultiply, kernels.multiply_scratch(rows));
  if (kernels.begin_unit) kernels.begin_unit(rows);
  if (linears.gated) {
    multiply_gated(kernels, linears, unit, memory);
  } else {
    const size_t i = unit.linear;
    Output out = linears.outputs[i];
    out.stream = streams(out, rows.rows);
    kernels.multiply(linears.weights[i], rows, out, unit.tile, unit.count, memory);
  }
  if (kernels.end_unit) kernels.end_unit(rows);
}

template <class Pool>
void multiply_rows(const Kernels& kernels, Pool& pool, const Linears& linears) {
  const PackedRows& rows = linears.rows[0];
  UnitSize size = unit_size(kernels, rows.granularity, rows.rows, pool.num_threads());
  if (linears.gated && size.most > size.step) size.most /= 2;  // its outputs stay in near caches
  const size_t count = linears.gated ? 1 : linears.weights.size();
  const std::vector<Unit> units = units_of(linears.weights, count, size);
  team().run(pool, static_cast<int64_t>(units.size()),
             [&](int64_t i) { multiply_unit(kernels, linears, units[i]); });
}

// Memory for the rows of each weight. Equal orders share it: q, k and v, gate and up.
inline void place_rows(const Kernels& kernels, Linears& linears, PackedRows rows) {
  const size_t count = linears.weights.size();
  const int64_t bytes = ceil_div(kernels.packed_bytes(rows), 64) * 64;
  std::vector<int64_t> places;
  int64_t used = 0;
  for (size_t i = 0; i < count; ++i) {
    size_t same = 0;
    while (!same_order(linears.weights[same], linears.weights[i], rows.inputs)) ++same;
    places.push_back(same < i ? places[same] : used++);
  }
  uint8_t* memory = scratch<uint8_t>(Scratch::kPacked, used * bytes);
  for (const int64_t place : places) {
    rows.memory = memory + place * bytes;
    linears.rows.push_back(rows);
  }
}

// Runs all linears on the rows of a source. given: the static scale, or null; without it, kGiven
// means one scale for each of the `sequences` that the rows divide into.
template <class Pool>
void run_linears(const Kernels& kernels, Pool& pool, Linears& linears, Source source,
                 const PackedRows& rows, const float* given, int64_t sequences) {
  place_rows(kernels, linears, rows);
  const uint8_t* packed = nullptr;  // the last that are
  for (size_t i = 0; i < linears.rows.size(); ++i) {
    if (linears.rows[i].memory <= packed) continue;
    source.order = linears.weights[i].order;
    pack_rows(kernels, pool, source, linears.rows[i], given, sequences);
    packed = linears.rows[i].memory;
  }
  multiply_rows(kernels, pool, linears);
}

}  // namespace planish
