// Linears as one FFI call: rows are prepared once, then all threads share the tiles of weights.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ffi_buffers.h"
#include "kernels.h"
#include "parallel.h"

namespace planish {

constexpr int64_t kLinearFields = 5;  // bits, outputs, group_size, has_zero, has_bias

struct Linears {
  std::vector<Weight> weights;
  std::vector<Output> outputs;
};

// One weight, or those of `experts` experts one behind the other: then it is the first one's.
inline Weight read_weight(Reader& in, const int64_t* field, int64_t k, int64_t experts = 1) {
  Weight w = {};
  w.bits = static_cast<int>(field[0]);
  w.outputs = field[1];
  if ((w.bits != 8 && w.bits != 4) || w.outputs < 1) {
    in.fail("a weight must have 8 or 4 bits and at least one output");
    return w;
  }
  const int64_t tiles = ceil_div(w.outputs, kTile), width = 32 / w.bits;
  const int64_t group = w.bits == 8 || field[2] < 1 ? k : field[2];
  w.blocks = ceil_div(k, width);
  w.groups = ceil_div(k, group);
  w.group_blocks = ceil_div(group, width);
  if (w.groups > 1 && group % 32 != 0) in.fail("a group must be a multiple of 32 inputs");
  const auto code_type = w.bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  const int64_t beside = experts * tiles * w.groups * kTile;
  w.codes = in.data<uint8_t>("codes", code_type, experts * tiles * w.blocks * kTileBytes);
  if (w.bits == 8) {
    ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F32}, -1);
    if (!scale) return w;
    const int64_t count = static_cast<int64_t>(scale->element_count());
    if (count != experts && count != experts * w.outputs) {
      in.fail("scale is " + shape_text(*scale) + ", expected " + std::to_string(experts) + " or " +
              std::to_string(experts * w.outputs));
    }
    w.one_scale = count == experts;
    w.scale = scale->untyped_data();
  } else {
    ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F16, ffi::DataType::F32}, beside);
    if (!scale) return w;
    w.half_scale = scale->element_type() == ffi::DataType::F16;
    w.scale = scale->untyped_data();
    if (field[3]) w.zero = in.data<uint8_t>("zero_point", ffi::DataType::U8, beside);
  }
  if (field[4]) w.bias = in.data<float>("bias", ffi::DataType::F32, experts * w.outputs);
  return w;
}

// Where the prepared rows lie: in this thread's scratch memory, read by all.
inline Rows place_rows(const Weight& first, Granularity granularity, int64_t count, int64_t k) {
  Rows rows = {};
  rows.granularity = granularity;
  rows.rows = count;
  rows.steps = ceil_div(k, 8) * 2;
  rows.groups = first.groups;
  rows.group_inputs = first.groups == 1 ? k : first.group_blocks * 32 / first.bits;
  rows.scale_groups = granularity == Granularity::kGroup ? first.groups : 1;
  if (granularity == Granularity::kFloat) {
    rows.floats = scratch<float>(0, count * rows.steps * 4);
  } else {
    rows.codes = scratch<int8_t>(1, count * rows.steps * 4);
    rows.scales = scratch<float>(2, count * rows.scale_groups);
    rows.sums = scratch<int32_t>(3, count * rows.groups);
  }
  return rows;
}

inline void prepare(const Kernels& kernels, ffi::ThreadPool& pool, const Source& source, const Rows& rows,
             const float* given, int64_t sequences) {
  const int64_t k = source.inputs, each = rows.rows / sequences;
  std::vector<float> scales(given || rows.granularity != Granularity::kGiven ? 0 : rows.rows);
  auto shared = [&](int64_t units, auto body) {
    if (rows.rows * k <= kSerialInputs) {
      for (int64_t unit = 0; unit < units; ++unit) body(unit);
    } else {
      team().run(pool, units, body);
    }
  };
  if (!scales.empty()) {  // per_tensor: the largest of each sequence first
    shared(rows.rows, [&](int64_t row) {
      scales[row] = kernels.row_absmax(source, row, scratch<float>(4, k + 32));
    });
    for (int64_t s = 0; s < sequences; ++s) {
      float largest = 0.0f;
      for (int64_t r = s * each; r < (s + 1) * each; ++r) {
        if (!(scales[r] <= largest)) largest = scales[r];  // NaN wins
      }
      const float scale = (largest < 1e-5f ? 1e-5f : largest) / 127.0f;
      for (int64_t r = s * each; r < (s + 1) * each; ++r) scales[r] = scale;
    }
  }
  const int64_t tiles = ceil_div(rows.rows, kRowTile);
  shared(tiles, [&](int64_t tile) {
    const int64_t end = tile * kRowTile + kRowTile;
    for (int64_t row = tile * kRowTile; row < end && row < rows.rows; ++row) {
      const float scale = !scales.empty() ? scales[row] : given ? given[0] : 0.0f;
      kernels.prepare_row(source, rows, row, scale, scratch<float>(4, k + 32));
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

// Of few rows each unit is a part of what is left, long streams first and short ones last, so that
// the threads end together; of many rows, as many tiles as are multiplied together.
inline std::vector<Unit> units_of(const Linears& linears, const Rows& rows, bool gated, int64_t threads) {
  const size_t count = gated ? 1 : linears.weights.size();
  int64_t left = 0;  // tiles
  for (size_t i = 0; i < count; ++i) left += ceil_div(linears.weights[i].outputs, kTile);
  const int64_t step = rows.granularity == Granularity::kFloat ? 4 : 2;  // multiplied together
  std::vector<Unit> units;
  for (size_t i = 0; i < count; ++i) {
    const Weight& w = linears.weights[i];
    const int64_t tiles = ceil_div(w.outputs, kTile), tile_bytes = w.blocks * kTileBytes;
    const int64_t least = ceil_div(kLeastBytes, tile_bytes * step) * step;
    for (int64_t tile = 0; tile < tiles;) {
      int64_t many = rows.rows > kRowTile ? step : left / (2 * threads) / step * step;
      if (rows.rows <= kRowTile && many < least) many = least;
      if (many > tiles - tile) many = tiles - tile;
      units.push_back({i, tile, many});
      tile += many;
      left -= many;
    }
  }
  return units;
}

// One unit of a linear, or of gate and up together.
inline void multiply_unit(const Kernels& kernels, const Linears& linears, const Rows& rows,
                          bool gated, const Unit& unit) {
  const bool floats = rows.granularity == Granularity::kFloat;
  const auto compute = [&](const Weight& w, const Output& out) {
    if (floats) {
      float* memory = scratch<float>(5, kernels.float_scratch(rows));
      kernels.float_tiles(w, rows, out, unit.tile, unit.count, memory);
    } else {
      kernels.integer_tiles(w, rows, out, unit.tile, unit.count);
    }
  };
  const Weight& w = linears.weights[unit.linear];
  const Output& out = linears.outputs[unit.linear];
  if (!gated) {
    compute(w, out);
    return;
  }
  const int64_t first = unit.tile * kTile, wide = unit.count * kTile;
  const int64_t count = w.outputs - first < wide ? w.outputs - first : wide;
  float* both = scratch<float>(6, 2 * rows.rows * wide);
  float* up = both + rows.rows * wide;
  compute(w, {both, nullptr, wide, first});
  compute(linears.weights[1], {up, nullptr, wide, first});
  kernels.gate(both, up, wide, out.y + first, out.stride, rows.rows, count);
}

inline void multiply(const Kernels& kernels, ffi::ThreadPool& pool, const Linears& linears,
                     const Rows& rows, bool gated) {
  const std::vector<Unit> units = units_of(linears, rows, gated, pool.num_threads());
  team().run(pool, static_cast<int64_t>(units.size()), [&](int64_t i) {
    multiply_unit(kernels, linears, rows, gated, units[i]);
  });
}

inline Granularity granularity_of(std::string_view name, Reader& in) {
  if (name == "float") return Granularity::kFloat;
  if (name == "per_token") return Granularity::kRow;
  if (name == "per_group") return Granularity::kGroup;
  if (name == "per_tensor" || name == "static") return Granularity::kGiven;
  in.fail("unknown activation " + std::string(name));
  return Granularity::kFloat;
}

inline Norm norm_of(std::string_view name, Reader& in) {
  if (name == "rms_norm") return Norm::kRms;
  if (name == "layer_norm") return Norm::kLayer;
  if (!name.empty()) in.fail("unknown norm " + std::string(name));
  return Norm::kNone;
}

// y_i = linear_i(norm(x)) + residual, or the one y = silu(linear_0(norm(x))) * linear_1(norm(x)).
// Buffers, in this order and where the attributes say that they are there: x, norm weight, norm
// bias, activation scale; for each linear codes, scale, zero point, bias; residual. Results: y.
inline ffi::Error linears(ffi::ThreadPool pool, std::string_view isa, std::string_view activation,
                   std::string_view norm, float eps, bool gated, bool norm_weight, bool norm_bias,
                   bool residual, int64_t sequences, ffi::Span<const int64_t> fields,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  const int64_t count = static_cast<int64_t>(fields.size()) / kLinearFields;
  if (count < 1 || static_cast<int64_t>(fields.size()) != count * kLinearFields) {
    in.fail("the linears' fields are incomplete");
  }
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  if (!in.good()) return in.error();
  if (x->dimensions().size() < 1 || x->dimensions().back() < 1 || x->element_count() < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [..., inputs]");
    return in.error();
  }
  const int64_t k = x->dimensions().back();
  const int64_t rows = static_cast<int64_t>(x->element_count()) / k;
  if (sequences < 1 || rows % sequences != 0) in.fail("rows do not divide into sequences");
  Source source = {static_cast<const float*>(x->untyped_data()), norm_of(norm, in), nullptr,
                   nullptr, eps, k};
  const Granularity granularity = granularity_of(activation, in);
  const float* given = nullptr;
  if (norm_weight) source.norm_weight = in.data<float>("norm weight", ffi::DataType::F32, k);
  if (norm_bias) source.norm_bias = in.data<float>("norm bias", ffi::DataType::F32, k);
  if (activation == "static") given = in.data<float>("activation scale", ffi::DataType::F32, 1);
  Linears all;
  for (int64_t i = 0; i < count && in.good(); ++i) {
    all.weights.push_back(read_weight(in, fields.begin() + i * kLinearFields, k));
    if (all.weights[i].groups != all.weights[0].groups ||
        all.weights[i].group_blocks * all.weights[0].bits !=
            all.weights[0].group_blocks * all.weights[i].bits) {
      in.fail("linears of one call must have the same groups");
    }
  }
  const int64_t wide = in.good() ? all.weights[0].outputs : 0;
  const float* added = residual && in.good()
                           ? in.data<float>("residual", ffi::DataType::F32, rows * wide)
                           : nullptr;
  if (residual && count != 1) in.fail("a residual belongs to one linear");
  if (gated && (count != 2 || (in.good() && all.weights[1].outputs != wide))) {
    in.fail("gate and up are two linears of as many outputs");
  }
  for (int64_t i = 0; i < (gated ? 1 : count) && in.good(); ++i) {
    const int64_t n = all.weights[i].outputs;
    all.outputs.push_back({in.result<float>("y", ffi::DataType::F32, rows * n), added, n, 0});
  }
  in.end();
  if (!in.good()) return in.error();
  const Rows prepared = place_rows(all.weights[0], granularity, rows, k);
  prepare(*kernels, pool, source, prepared, given, sequences);
  multiply(*kernels, pool, all, prepared, gated);
  return ffi::Error::Success();
}

}  // namespace planish
