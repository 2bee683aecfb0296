// How the threads share a mixture of experts. Only the weights of chosen experts are read.
//
// Rows are grouped by expert: the rows that chose the lowest expert id, in their order, then those
// of the next id. A first call maps rows [R, K] to grouped rows [R * top_k, N]; a last call maps
// grouped rows to rows, the sum of each row's expert outputs weighted by the router.
#pragma once

#include <algorithm>
#include <vector>

#include "linears.h"

namespace planish {

// Grouped rows `first` to `first + count` belong to one expert.
struct Group {
  int64_t expert, first, count;
};

// The rows of each expert, and the grouped rows of each row.
struct Choice {
  int64_t rows, top_k, sequences;
  std::vector<Group> groups;
  std::vector<int64_t> row;            // of each grouped row
  std::vector<int64_t> grouped;        // [rows, top_k], each row's grouped rows in their order
  std::vector<float> routing_weights;  // in the same order; empty unless the call is the last
};

// Groups rows with a counting sort, which is stable. expert_ids, routing_weights [rows, top_k].
inline Choice group_rows(const int32_t* expert_ids, const float* routing_weights, int64_t rows,
                         int64_t top_k, int64_t sequences, int64_t experts) {
  Choice c = {rows, top_k, sequences, {}, {}, {}, {}};
  const int64_t pairs = rows * top_k;
  std::vector<int64_t> next(experts + 1, 0), found(rows, 0), order(pairs);
  for (int64_t i = 0; i < pairs; ++i) ++next[expert_ids[i] + 1];
  for (int64_t e = 0; e < experts; ++e) {
    if (next[e + 1] > 0) c.groups.push_back({e, next[e], next[e + 1]});
    next[e + 1] += next[e];
  }
  for (int64_t i = 0; i < pairs; ++i) order[next[expert_ids[i]]++] = i;
  c.row.resize(pairs);
  c.grouped.resize(pairs);
  c.routing_weights.resize(routing_weights ? pairs : 0);
  for (int64_t j = 0; j < pairs; ++j) {
    const int64_t row = order[j] / top_k, at = row * top_k + found[row]++;
    c.row[j] = row;
    c.grouped[at] = j;
    if (routing_weights) c.routing_weights[at] = routing_weights[order[j]];
  }
  return c;
}

// Moves a pointer to floats or halves.
inline const void* skip(const void* p, bool half, int64_t count) {
  return static_cast<const uint8_t*>(p) + count * (half ? 2 : 4);
}

// The weight of one expert in a stack, for K inputs.
inline Weight weight_of(Weight w, int64_t expert, int64_t inputs) {
  const int64_t tiles = ceil_div(w.outputs, kTile), per_group = tiles * w.groups * kTile;
  const int64_t scales = !w.row_scale ? per_group : w.one_scale ? 1 : w.outputs;
  w.codes += expert * tiles * w.blocks * kTileBytes;
  w.scale = skip(w.scale, w.half_scale, expert * scales);
  if (w.offset) w.offset = skip(w.offset, w.half_offset, expert * per_group);
  if (w.order) w.order += expert * inputs;
  if (w.zero) w.zero += expert * per_group;
  if (w.bias) w.bias += expert * w.outputs;
  return w;
}

// The packed rows of each group, or one row that all experts read.
struct GroupedRows {
  std::vector<PackedRows> groups;
  bool shared;

  const PackedRows& of(size_t group) const { return groups[shared ? 0 : group]; }
};

// Reserves memory for the rows of every group. shared: all groups read the only row.
inline GroupedRows place_groups(const Kernels& kernels, const Choice& choice, PackedRows rows,
                                bool shared, Scratch purpose) {
  GroupedRows found = {{}, shared};
  std::vector<int64_t> starts;
  int64_t bytes = 0;
  for (const Group& group : choice.groups) {
    rows.rows = shared ? 1 : group.count;
    found.groups.push_back(rows);
    starts.push_back(bytes);
    bytes += ceil_div(kernels.packed_bytes(rows), 64) * 64;
    if (shared) break;
  }
  uint8_t* memory = scratch<uint8_t>(purpose, bytes);
  for (size_t g = 0; g < starts.size(); ++g) found.groups[g].memory = memory + starts[g];
  return found;
}

// per_tensor scales from each grouped row's absmax: one for an expert's rows of one sequence.
inline void make_scales(const Choice& choice, std::vector<float>& scales) {
  const int64_t each = choice.rows / choice.sequences;
  const int64_t count = static_cast<int64_t>(scales.size());
  for (const Group& group : choice.groups) {
    const int64_t last = std::min(group.first + group.count, count);
    for (int64_t j = group.first, end; j < last; j = end) {
      float largest = 0.0f;
      const int64_t sequence = choice.row[j] / each;
      for (end = j; end < last && choice.row[end] / each == sequence; ++end) {
        largest = larger(largest, scales[end]);
      }
      for (int64_t i = j; i < end; ++i) scales[i] = int8_scale(largest);
    }
  }
}

// The source of grouped rows: x [R, K], or x [R * top_k, K], which is already grouped; the order in
// which each expert reads them, [experts, K], or null.
struct GroupSource {
  const float* x;
  int64_t inputs;
  bool grouped;
  const int32_t* order = nullptr;

  // A source whose row number `row` is the grouped row j, which an expert reads.
  Source at(const Choice& choice, int64_t expert, int64_t j, int64_t row) const {
    const int64_t from = grouped ? j : choice.row[j];
    const int32_t* own = order ? order + expert * inputs : nullptr;
    return {x + (from - row) * inputs, Norm::kNone, nullptr, nullptr, 0.0f, inputs, own};
  }
};

// Divides the groups' rows into packs, each for one thread: group, first row, count.
inline std::vector<Group> packs_of(const GroupedRows& rows, int64_t row_tile) {
  std::vector<Group> packs;
  for (size_t g = 0; g < rows.groups.size(); ++g) {
    const int64_t count = rows.groups[g].rows;
    for (int64_t row = 0; row < count; row += row_tile) {
      packs.push_back({static_cast<int64_t>(g), row, std::min(row_tile, count - row)});
    }
  }
  return packs;
}

// Packs the rows of every group. given: static scales [experts], or null.
template <class Pool>
void pack_groups(const Kernels& kernels, Pool& pool, const Choice& choice,
                 const GroupSource& source, const GroupedRows& rows, const float* given) {
  const int64_t k = source.inputs;
  const int64_t count = rows.shared ? 1 : choice.rows * choice.top_k;
  std::vector<float> scales;
  if (rows.groups[0].granularity == Granularity::kGiven && !given) {
    scales.resize(count);
    run_units(pool, count, count * k, [&](int64_t j) {
      scales[j] = kernels.row_absmax(source.at(choice, 0, j, 0), 0, row_scratch(k));
    });
    make_scales(choice, scales);
  }
  const std::vector<Group> packs = packs_of(rows, kernels.row_tile);
  run_units(pool, static_cast<int64_t>(packs.size()), count * k, [&](int64_t i) {
    const Group& group = choice.groups[packs[i].expert];
    for (int64_t row = packs[i].first; row < packs[i].first + packs[i].count; ++row) {
      const int64_t j = group.first + row;
      const float scale = !scales.empty() ? scales[j] : given ? given[group.expert] : 0.0f;
      const Source from = source.at(choice, group.expert, j, row);
      kernels.pack_row(from, rows.groups[packs[i].expert], row, scale, row_scratch(k));
    }
  });
}

// y [grouped rows, N] of one linear, or silu(gate) * up; all threads share the experts' tiles.
// packed: the rows of each stack.
template <class Pool>
void multiply_groups(const Kernels& kernels, Pool& pool, const Choice& choice,
                     const std::vector<Weight>& stacks, const std::vector<GroupedRows>& packed,
                     float* y) {
  const int64_t n = stacks[0].outputs, k = packed[0].groups[0].inputs;
  std::vector<Weight> first;  // of each group
  std::vector<Linears> linears(choice.groups.size());
  int64_t most = 0;  // rows of a group
  for (size_t g = 0; g < choice.groups.size(); ++g) {
    const Group& group = choice.groups[g];
    most = std::max(most, packed[0].of(g).rows);
    first.push_back(weight_of(stacks[0], group.expert, k));
    for (size_t i = 0; i < stacks.size(); ++i) {
      linears[g].weights.push_back(weight_of(stacks[i], group.expert, k));
      linears[g].rows.push_back(packed[i].of(g));
    }
    linears[g].outputs.push_back({y + group.first * n, nullptr, n, 0});
    linears[g].gated = stacks.size() == 2;
  }
  const Granularity granularity = packed[0].groups[0].granularity;
  const UnitSize size = unit_size(kernels, granularity, most, pool.num_threads());
  const std::vector<Unit> units = units_of(first, first.size(), size);
  team().run(pool, static_cast<int64_t>(units.size()), [&](int64_t i) {
    const size_t g = units[i].linear;
    multiply_unit(kernels, linears[g], {0, units[i].tile, units[i].count});
  });
}

// y[r] = residual[r] + the weighted sum of the row's expert outputs.
template <class Pool>
void sum_experts(const Kernels& kernels, Pool& pool, const Choice& choice, const float* grouped,
                 const float* residual, float* y, int64_t n) {
  const int64_t top_k = choice.top_k;
  run_units(pool, choice.rows, choice.rows * top_k * n / 8, [&](int64_t row) {
    std::vector<const float*> outputs(top_k);
    for (int64_t p = 0; p < top_k; ++p) outputs[p] = grouped + choice.grouped[row * top_k + p] * n;
    const float* added = residual ? residual + row * n : nullptr;
    kernels.weighted_sum(outputs.data(), choice.routing_weights.data() + row * top_k, top_k, added,
                         y + row * n, n);
  });
}

// One call: the stacked weights of one linear, or of gate and up, and where the result goes.
struct ExpertLinears {
  std::vector<Weight> stacks;
  Granularity granularity;
  const float* given;     // each expert's static scale, or null
  const float* residual;  // [rows, N] or null, added by a last call
  float* y;               // grouped rows, or rows by a last call
};

// Packs the rows for each stack: gate and up share them if they have no orders.
template <class Pool>
std::vector<GroupedRows> pack_stacks(const Kernels& kernels, Pool& pool, const Choice& choice,
                                     GroupSource source, const ExpertLinears& linears) {
  const std::vector<Weight>& stacks = linears.stacks;
  const bool ordered = stacks[0].order || stacks.back().order;
  const bool shared = !source.grouped && choice.rows == 1 && !linears.given && !ordered;
  const int64_t pairs = choice.rows * choice.top_k;
  const PackedRows any = rows_for(stacks, linears.granularity, pairs, source.inputs);
  std::vector<GroupedRows> packed;
  for (size_t i = 0; i < stacks.size(); ++i) {
    if (i > 0 && !ordered) {
      packed.push_back(packed[0]);
      continue;
    }
    const Scratch purpose = i == 0 ? Scratch::kPacked : Scratch::kPackedUp;
    packed.push_back(place_groups(kernels, choice, any, shared, purpose));
    source.order = stacks[i].order;
    pack_groups(kernels, pool, choice, source, packed[i], linears.given);
  }
  return packed;
}

// Runs the rows of the source through their experts; grouped rows are summed up by row.
template <class Pool>
void run_experts(const Kernels& kernels, Pool& pool, const Choice& choice,
                 const GroupSource& source, const ExpertLinears& linears) {
  const Weight& first = linears.stacks[0];
  const bool last = source.grouped;
  const std::vector<GroupedRows> rows = pack_stacks(kernels, pool, choice, source, linears);
  const int64_t pairs = choice.rows * choice.top_k;
  float* y = last ? scratch<float>(Scratch::kExperts, pairs * first.outputs) : linears.y;
  multiply_groups(kernels, pool, choice, linears.stacks, rows, y);
  if (last) sum_experts(kernels, pool, choice, y, linears.residual, linears.y, first.outputs);
}

}  // namespace planish
