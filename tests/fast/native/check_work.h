// How the threads share linears and experts: the results must equal, bit for bit, those of each row
// computed alone.
#pragma once

#include "check_linears.h"
#include "work/experts.h"
#include "work/route.h"

namespace planish {

// Each row of x by itself through one linear, packed like those of a call. Where `together` rows
// are multiplied by tiles, which add floats in another order, it comes with enough copies of itself
// for tiles.
inline std::vector<float> row_by_row(const Kernels& kernels, const Weight& w, const Source& all,
                                     int64_t together, const PackedRows& like, float given,
                                     int64_t rows) {
  const Granularity granularity = like.granularity;
  const bool tiles = floats_by_tiles(kernels, granularity, together);
  const int64_t copies = tiles ? kernels.few_rows + 1 : 1, k = all.inputs;
  std::vector<float> y(rows * w.outputs, NAN), x(copies * k), found(copies * w.outputs);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < copies; ++i) std::copy_n(all.x + row * k, k, x.begin() + i * k);
    Source source = all;
    source.x = x.data();
    source.order = w.order;
    const Packed packed(kernels, source, granularity, copies, like.group_inputs, given,
                        like.totals);
    const Output out = {found.data(), nullptr, w.outputs, 0};
    multiply(kernels, w, packed.rows, out, 0, ceil_div(w.outputs, kTile));
    std::copy_n(found.begin(), w.outputs, y.begin() + row * w.outputs);
  }
  return y;
}

inline void expect_same(const std::vector<float>& found, const std::vector<float>& expected,
                        const char* what, int64_t rows) {
  const int64_t count = static_cast<int64_t>(expected.size());
  for (int64_t i = 0; i < count; ++i) expect(found[i] == expected[i], what, i, count, rows);
}

// New codes, scales and, if it is foreign, a new offset and perhaps order of a weight.
inline void draw_again(Random& r, Case& c, bool foreign) {
  c.codes.clear();
  c.zeros.clear();
  c.halves.clear();
  c.offset_halves.clear();
  c.bias.clear();
  if (foreign) c.has_offset = draw(r, 0, 1) == 1;
  if (c.has_offset) c.stored_zero = false;
  if (foreign && draw(r, 0, 1)) draw_order(r, c);
  draw_codes(r, c);
  draw_scales(r, c);
}

// Several linears of one input, and silu(gate) * up.
inline void check_shared_linears(const Kernels& kernels, Pool& pool, Random& r) {
  const bool foreign = draw(r, 0, 1) == 1, gated = draw(r, 0, 1) == 1;
  const Case a = foreign ? random_foreign(r) : random_case(r, draw(r, 0, 1) ? 8 : 4);
  Case b = a;
  if (!gated) b.n = draw(r, 1, 130);
  draw_again(r, b, foreign);
  const Granularity granularity = foreign ? Granularity::kFloat : random_granularity(r, a.bits);
  const float static_scale = 0.0131f;
  const float* given = granularity == Granularity::kGiven ? &static_scale : nullptr;
  const int64_t rows = draw(r, 1, 20);
  const std::vector<float> x = floats(r, rows * a.k);
  const Source source = {x.data(), Norm::kRms, nullptr, nullptr, 1e-5f, a.k};
  std::vector<float> y(rows * a.n, NAN), z(rows * b.n, NAN);
  Linears linears = {{a.weight(), b.weight()}, {{y.data(), nullptr, a.n, 0}}, gated};
  if (!gated) linears.outputs.push_back({z.data(), nullptr, b.n, 0});
  const PackedRows packed = rows_for(linears.weights, granularity, rows, a.k);
  run_linears(kernels, pool, linears, source, packed, given, 1);
  expect_no_tiles(kernels);
  const auto first = row_by_row(kernels, a.weight(), source, rows, packed, static_scale, rows);
  const auto second = row_by_row(kernels, b.weight(), source, rows, packed, static_scale, rows);
  if (gated) {
    std::vector<float> expected(rows * a.n);
    kernels.gate(first.data(), second.data(), a.n, {expected.data(), nullptr, a.n, 0}, rows, a.n);
    expect_same(y, expected, "gated linears", rows);
    return;
  }
  expect_same(y, first, "first of two linears", rows);
  expect_same(z, second, "second of two linears", rows);
}

// Codes and scales of several experts, concatenated, and each expert by itself.
struct Stack {
  std::vector<Case> experts;
  std::vector<uint8_t> tiles, zeros;
  std::vector<float> scales, offsets, bias;
  std::vector<uint16_t> halves, offset_halves;
  std::vector<int32_t> order;

  Weight weight() const {
    Weight w = experts[0].weight();
    w.codes = tiles.data();
    w.scale = halves.empty() ? static_cast<const void*>(scales.data()) : halves.data();
    if (w.offset) w.offset = offsets.data();
    if (w.half_offset) w.offset = offset_halves.data();
    if (w.order) w.order = order.data();
    if (w.zero) w.zero = zeros.data();
    if (w.bias) w.bias = bias.data();
    return w;
  }
};

template <class T>
void append(std::vector<T>& all, const std::vector<T>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

inline Stack random_stack(Random& r, int64_t experts, bool foreign) {
  const Case first = foreign ? random_foreign(r) : random_case(r, draw(r, 0, 1) ? 8 : 4);
  Stack s;
  for (int64_t e = 0; e < experts; ++e) {
    Case c = first;
    if (e > 0) {
      c.codes.clear();
      draw_codes(r, c);
      if (!c.order.empty()) draw_order(r, c);
    }
    append(s.tiles, c.tiles);
    append(s.order, c.order);
    append(s.offsets, c.offset_tiles);
    append(s.offset_halves, c.offset_halves);
    append(s.zeros, c.zero_tiles);
    append(s.scales, c.scale_tiles);
    append(s.halves, c.halves);
    append(s.bias, c.bias);
    s.experts.push_back(c);
  }
  return s;
}

// Different experts for each row: [rows, top_k].
inline std::vector<int32_t> random_choice(Random& r, int64_t rows, int64_t top_k, int experts) {
  std::vector<int32_t> expert_ids;
  for (int64_t row = 0; row < rows; ++row) {
    const int first = draw(r, 0, experts - 1);
    for (int64_t p = 0; p < top_k; ++p) {
      expert_ids.push_back(static_cast<int32_t>((first + p) % experts));
    }
  }
  return expert_ids;
}

// Each row through its experts, and the weighted sum of their outputs.
inline void check_experts(const Kernels& kernels, Pool& pool, Random& r) {
  const int experts = draw(r, 1, 6);
  const bool foreign = draw(r, 0, 1) == 1;
  const Stack stack = random_stack(r, experts, foreign);
  const Case& c = stack.experts[0];
  const bool quantized = !foreign && draw(r, 0, 1) == 1;
  const Granularity granularity = quantized ? Granularity::kRow : Granularity::kFloat;
  const int64_t rows = draw(r, 1, 30), top_k = draw(r, 1, experts), pairs = rows * top_k;
  const auto expert_ids = random_choice(r, rows, top_k, experts);
  const bool last = draw(r, 0, 1) == 1;
  const auto x = floats(r, (last ? pairs : rows) * c.k), routing_weights = floats(r, pairs);
  std::vector<float> y((last ? rows : pairs) * c.n, NAN), expected(y.size());
  const Choice choice =
      group_rows(expert_ids.data(), routing_weights.data(), rows, top_k, 1, experts);
  const ExpertLinears linears = {{stack.weight()}, granularity, nullptr, nullptr, y.data()};
  run_experts(kernels, pool, choice, {x.data(), c.k, last}, linears);
  const PackedRows packed = rows_for(linears.stacks, granularity, pairs, c.k);
  std::vector<float> alone(pairs * c.n);
  for (const Group& group : choice.groups) {
    for (int64_t j = group.first; j < group.first + group.count; ++j) {
      const float* row = x.data() + (last ? j : choice.row[j]) * c.k;
      const Source source = {row, Norm::kNone, nullptr, nullptr, 0.0f, c.k};
      const Weight w = stack.experts[group.expert].weight();
      const auto one = row_by_row(kernels, w, source, group.count, packed, 0.0f, 1);
      std::copy(one.begin(), one.end(), alone.begin() + j * c.n);
    }
  }
  if (!last) {
    expect_same(y, alone, "experts", rows);
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<const float*> outputs;
    for (int64_t p = 0; p < top_k; ++p) {
      outputs.push_back(alone.data() + choice.grouped[row * top_k + p] * c.n);
    }
    kernels.weighted_sum(outputs.data(), choice.routing_weights.data() + row * top_k, top_k,
                         nullptr, expected.data() + row * c.n, c.n);
  }
  expect_same(y, expected, "sums of experts", rows);
}

// Routing weights come in descending order and add up to one.
inline void check_route(const Kernels& kernels, Pool& pool, Random& r) {
  const int64_t k = draw(r, 1, 100), rows = draw(r, 1, 5), experts = draw(r, 1, 20);
  const int64_t top_k = draw(r, 1, static_cast<int>(experts));
  const auto x = floats(r, rows * k), w = floats(r, experts * k);
  std::vector<float> norm(rows * k), routing_weights(rows * top_k);
  std::vector<int32_t> expert_ids(rows * top_k);
  const Router router = {
      w.data(), rows, experts, top_k, true, norm.data(), routing_weights.data(), expert_ids.data()};
  route_rows(kernels, pool, {x.data(), Norm::kNone, nullptr, nullptr, 0.0f, k}, router);
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    for (int64_t p = 0; p < top_k; ++p) {
      const float weight = routing_weights[row * top_k + p];
      sum += weight;
      expect(p == 0 || weight <= routing_weights[row * top_k + p - 1], "order of routing weights",
             row, p, experts);
    }
    expect(std::fabs(sum - 1.0) < 1e-5, "sum of routing weights", row, top_k, experts);
  }
}

}  // namespace planish
