// Linears of a mixture of experts as one FFI call: each row goes through the experts chosen for
// it, and no other's weights are read.
//
// Rows are grouped: all (row, place) pairs of the first expert that somebody chose, by row, then
// those of the next. A first call makes of rows [R, K] grouped rows [R * places, N]; a last call
// takes grouped rows and adds up what a row's experts gave by their shares, in their order.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "ffi_buffers.h"
#include "ffi_linears.h"
#include "kernels.h"
#include "parallel.h"

namespace planish {

// Grouped rows `first` to `first + count` belong to one expert.
struct Group {
  int64_t expert, first, count;
};

// Who chose whom: chosen [rows, places].
struct Choice {
  int64_t rows, places, sequences;
  std::vector<Group> groups;
  std::vector<int64_t> row;      // of each grouped row
  std::vector<int64_t> grouped;  // [rows, places], each row's grouped rows in their order
  std::vector<float> shares;     // the same, of a last call
};

// Grouped rows by counting, so that a row's experts come in their order.
inline Choice group_rows(const int32_t* chosen, const float* shares, int64_t rows, int64_t places,
                         int64_t sequences, int64_t experts) {
  Choice c = {rows, places, sequences, {}, {}, {}, {}};
  const int64_t pairs = rows * places;
  std::vector<int64_t> next(experts + 1, 0), found(rows, 0), order(pairs);
  for (int64_t i = 0; i < pairs; ++i) ++next[chosen[i] + 1];
  for (int64_t e = 0; e < experts; ++e) {
    if (next[e + 1] > 0) c.groups.push_back({e, next[e], next[e + 1]});
    next[e + 1] += next[e];
  }
  for (int64_t i = 0; i < pairs; ++i) order[next[chosen[i]]++] = i;
  c.row.resize(pairs);
  c.grouped.resize(pairs);
  c.shares.resize(shares ? pairs : 0);
  for (int64_t j = 0; j < pairs; ++j) {
    const int64_t row = order[j] / places, at = row * places + found[row]++;
    c.row[j] = row;
    c.grouped[at] = j;
    if (shares) c.shares[at] = shares[order[j]];
  }
  return c;
}

// One expert's weight of those that lie one behind the other.
inline Weight weight_of(Weight w, int64_t expert) {
  const int64_t tiles = ceil_div(w.outputs, kTile), beside = tiles * w.groups * kTile;
  const int64_t scales = w.bits == 4 ? beside : w.one_scale ? 1 : w.outputs;
  w.codes += expert * tiles * w.blocks * kTileBytes;
  w.scale = static_cast<const uint8_t*>(w.scale) + expert * scales * (w.half_scale ? 2 : 4);
  if (w.zero) w.zero += expert * beside;
  if (w.bias) w.bias += expert * w.outputs;
  return w;
}

// A single row that all its experts read alike is prepared once.
inline Rows rows_of(Rows rows, const Group& group) {
  if (rows.rows == 1) return rows;
  const int64_t inputs = group.first * rows.steps * 4;
  if (rows.floats) rows.floats += inputs;
  if (rows.codes) rows.codes += inputs;
  if (rows.scales) rows.scales += group.first * rows.scale_groups;
  if (rows.sums) rows.sums += group.first * rows.groups;
  rows.rows = group.count;
  return rows;
}

// Calls body(unit) on all threads, or on this one where the work is a matter of microseconds.
template <class Body>
void shared(ffi::ThreadPool& pool, int64_t units, int64_t floats, Body&& body) {
  if (floats > kSerialInputs) {
    team().run(pool, units, body);
  } else {
    for (int64_t unit = 0; unit < units; ++unit) body(unit);
  }
}

// Each grouped row's largest -> one scale for each expert's rows of each sequence (SPEC 2).
inline void make_scales(const Choice& choice, std::vector<float>& scales) {
  const int64_t each = choice.rows / choice.sequences;
  const int64_t count = scales.size();
  for (const Group& group : choice.groups) {
    const int64_t last = std::min(group.first + group.count, count);
    for (int64_t j = group.first, end; j < last; j = end) {
      float largest = 0.0f;
      const int64_t sequence = choice.row[j] / each;
      for (end = j; end < last && choice.row[end] / each == sequence; ++end) {
        if (!(scales[end] <= largest)) largest = scales[end];  // NaN wins
      }
      const float scale = (largest < 1e-5f ? 1e-5f : largest) / 127.0f;
      for (int64_t i = j; i < end; ++i) scales[i] = scale;
    }
  }
}

// Every grouped row quantized, or as floats, in its place among its expert's rows. `given`: each
// expert's static scale, or null.
inline void prepare_experts(const Kernels& kernels, ffi::ThreadPool& pool, const Choice& choice,
                            const float* x, int64_t k, bool grouped, const Rows& rows,
                            const float* given) {
  const int64_t count = rows.rows;
  const auto source = [&](int64_t j, int64_t row) {  // whose row `row` is the grouped row j
    const int64_t from = grouped ? j : choice.row[j];
    return Source{x + (from - row) * k, Norm::kNone, nullptr, nullptr, 0.0f, k};
  };
  std::vector<float> scales;
  if (rows.granularity == Granularity::kGiven && !given) {
    scales = std::vector<float>(count);
    shared(pool, count, count * k, [&](int64_t j) {
      scales[j] = kernels.row_absmax(source(j, 0), 0, scratch<float>(4, k + 32));
    });
    make_scales(choice, scales);
  }
  std::vector<Group> tiles;  // of rows
  for (const Group& group : choice.groups) {
    for (int64_t row = 0; row < group.count && group.first < count; row += kRowTile) {
      const int64_t left = group.count - row;
      tiles.push_back({&group - choice.groups.data(), row, left < kRowTile ? left : kRowTile});
    }
  }
  shared(pool, tiles.size(), count * k, [&](int64_t i) {
    const Group& group = choice.groups[tiles[i].expert];
    const Rows own = rows_of(rows, group);
    for (int64_t row = tiles[i].first; row < tiles[i].first + tiles[i].count; ++row) {
      const int64_t j = group.first + row;
      const float scale = !scales.empty() ? scales[j] : given ? given[group.expert] : 0.0f;
      kernels.prepare_row(source(j, row), own, row, scale, scratch<float>(4, k + 32));
    }
  });
}

// y [grouped rows, N], one linear's or silu(gate) * up; all threads share the experts' tiles.
inline void multiply_experts(const Kernels& kernels, ffi::ThreadPool& pool, const Choice& choice,
                             const std::vector<Weight>& stacks, const Rows& rows, float* y) {
  const int64_t n = stacks[0].outputs;
  Linears first;  // of each group
  std::vector<Linears> linears(choice.groups.size());
  int64_t most = 0;
  for (size_t g = 0; g < choice.groups.size(); ++g) {
    const Group& group = choice.groups[g];
    most = group.count > most ? group.count : most;
    first.weights.push_back(weight_of(stacks[0], group.expert));
    for (const Weight& stack : stacks) linears[g].weights.push_back(weight_of(stack, group.expert));
    linears[g].outputs.push_back({y + group.first * n, nullptr, n, 0});
  }
  Rows any = rows;
  any.rows = most;  // decides between few rows and many
  const std::vector<Unit> units = units_of(first, any, false, pool.num_threads());
  team().run(pool, static_cast<int64_t>(units.size()), [&](int64_t i) {
    const size_t g = units[i].linear;
    const Unit unit = {0, units[i].tile, units[i].count};
    const Rows own = rows_of(rows, choice.groups[g]);
    multiply_unit(kernels, linears[g], own, stacks.size() == 2, unit);
  });
}

// y[r] = residual[r] + the sum of what the row's experts gave by their shares.
inline void add_up(const Kernels& kernels, ffi::ThreadPool& pool, const Choice& choice,
                   const float* grouped, const float* residual, float* y, int64_t n) {
  const int64_t places = choice.places;
  shared(pool, choice.rows, choice.rows * places * n / 8, [&](int64_t row) {
    std::vector<const float*> parts(places);
    for (int64_t p = 0; p < places; ++p) parts[p] = grouped + choice.grouped[row * places + p] * n;
    const float* added = residual ? residual + row * n : nullptr;
    kernels.weigh(parts.data(), choice.shares.data() + row * places, places, added, y + row * n, n);
  });
}

// What the attributes and the first buffers say, checked.
struct ExpertsCall {
  const Kernels* kernels;
  const float* x;
  const int32_t* chosen;
  int64_t rows, places, inputs;
};

inline ExpertsCall read_call(Reader& in, std::string_view isa, bool last, int64_t sequences,
                             int64_t experts) {
  ExpertsCall call = {choose(isa), nullptr, nullptr, 0, 0, 0};
  if (!call.kernels) in.fail("no kernels for " + std::string(isa));
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  ffi::AnyBuffer* chosen = in.good() ? in.next("chosen", {ffi::DataType::S32}, -1) : nullptr;
  if (!in.good()) return call;
  if (chosen->dimensions().size() != 2 || chosen->element_count() < 1) {
    in.fail("chosen is " + shape_text(*chosen) + ", expected [rows, places]");
    return call;
  }
  call.rows = chosen->dimensions()[0];
  call.places = chosen->dimensions()[1];
  const int64_t wanted = last ? call.rows * call.places : call.rows;
  if (x->dimensions().size() != 2 || x->dimensions()[0] != wanted || x->dimensions()[1] < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [" + std::to_string(wanted) + ", inputs]");
    return call;
  }
  if (sequences < 1 || call.rows % sequences != 0) in.fail("rows do not divide into sequences");
  call.inputs = x->dimensions()[1];
  call.x = static_cast<const float*>(x->untyped_data());
  call.chosen = static_cast<const int32_t*>(chosen->untyped_data());
  for (int64_t i = 0; i < call.rows * call.places && in.good(); ++i) {
    if (call.chosen[i] < 0 || call.chosen[i] >= experts) {
      in.fail("expert " + std::to_string(call.chosen[i]) + " was chosen of " +
              std::to_string(experts));
    }
  }
  return call;
}

// Buffers: x, chosen int32 [rows, places]; activation scales [experts] where they are static; for
// one linear, or gate and up, the stacks' codes, scale, zero point and bias; of a last call shares
// [rows, places] and perhaps a residual. Result: y.
inline ffi::Error experts(ffi::ThreadPool pool, std::string_view isa, std::string_view activation,
                          bool last, bool residual, int64_t sequences, int64_t experts,
                          ffi::Span<const int64_t> fields, ffi::RemainingArgs arguments,
                          ffi::RemainingRets results) {
  Reader in(arguments, results);
  const int64_t count = static_cast<int64_t>(fields.size()) / kLinearFields;
  if (count < 1 || count > (last ? 1 : 2) ||
      static_cast<int64_t>(fields.size()) != count * kLinearFields) {
    in.fail("the linears' fields must be those of one linear, or of gate and up");
  }
  const ExpertsCall call = read_call(in, isa, last, sequences, experts);
  const Granularity granularity = granularity_of(activation, in);
  if (!in.good()) return in.error();
  const int64_t k = call.inputs, pairs = call.rows * call.places;
  const float* given = nullptr;
  if (activation == "static") {
    given = in.data<float>("activation scale", ffi::DataType::F32, experts);
  }
  std::vector<Weight> stacks;
  for (int64_t i = 0; i < count && in.good(); ++i) {
    stacks.push_back(read_weight(in, fields.begin() + i * kLinearFields, k, experts));
  }
  if (in.good() && count == 2 &&
      (stacks[0].outputs != stacks[1].outputs || stacks[0].groups != stacks[1].groups ||
       stacks[0].group_blocks * stacks[0].bits != stacks[1].group_blocks * stacks[1].bits)) {
    in.fail("gate and up must have the same outputs and the same groups");
  }
  const int64_t n = in.good() ? stacks[0].outputs : 0;
  const float* shares = last ? in.data<float>("shares", ffi::DataType::F32, pairs) : nullptr;
  const float* added =
      residual ? in.data<float>("residual", ffi::DataType::F32, call.rows * n) : nullptr;
  float* y = in.result<float>("y", ffi::DataType::F32, (last ? call.rows : pairs) * n);
  in.end();
  if (!in.good()) return in.error();
  const Choice choice =
      group_rows(call.chosen, shares, call.rows, call.places, sequences, experts);
  const bool alike = !last && call.rows == 1 && !given;
  const Rows rows = place_rows(stacks[0], granularity, alike ? 1 : pairs, k);
  prepare_experts(*call.kernels, pool, choice, call.x, k, last, rows, given);
  float* grouped = last ? scratch<float>(7, pairs * n) : y;
  multiply_experts(*call.kernels, pool, choice, stacks, rows, grouped);
  if (last) add_up(*call.kernels, pool, choice, grouped, added, y, n);
  return ffi::Error::Success();
}

}  // namespace planish
