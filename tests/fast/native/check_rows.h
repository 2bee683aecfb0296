// Norms, packed rows and gates, against formulas in doubles.
#pragma once

#include "check_linears.h"

namespace planish {

// silu(gate) * up of some columns; the columns after them stay unchanged.
inline void check_gate(const Kernels& kernels, Random& r) {
  const int64_t rows = draw(r, 1, 5), count = draw(r, 1, 70), stride = ceil_div(count, 16) * 16;
  const std::vector<float> gate = floats(r, rows * stride, 20.0f), up = floats(r, rows * stride);
  const bool stream = draw(r, 0, 1) == 1;
  const int64_t wide = stream ? stride : count + draw(r, 0, 9);
  std::vector<Line> lines(ceil_div(rows * wide, 16));
  float* y = lines[0].at;
  std::fill_n(y, rows * wide, -7.0f);
  kernels.gate(gate.data(), up.data(), stride, {y, nullptr, wide, 0, stream}, rows, count);
  for (int64_t at = 0; at < rows * wide; ++at) {
    const int64_t row = at / wide, i = at % wide;
    if (i >= count) {
      expect(y[at] == -7.0f, "beyond the gated outputs", row, i, count);
      continue;
    }
    const double g = gate[row * stride + i], u = up[row * stride + i];
    const double expected = g / (1.0 + std::exp(-g)) * u;
    const double tolerance = 8 * kEps * std::fabs(expected) + 1e-30;
    expect(std::fabs(y[at] - expected) <= tolerance, "gate", row, i, count);
  }
}

// A linear that is the identity: code 1 on the diagonal and scale 1, in groups of INT4.
inline Case identity(int64_t k, int64_t group) {
  Case c = {};
  c.bits = 4;
  c.n = c.k = k;
  c.group = group;
  c.groups = ceil_div(k, group);
  const int64_t blocks = ceil_div(k, 8), tiles = ceil_div(k, 16);
  c.tiles.assign(tiles * blocks * 64, 0x88);
  for (int64_t i = 0; i < k; ++i) {
    c.tiles[((i / 16 * blocks + i / 8) * 16 + i % 16) * 4 + i % 4] += i % 8 < 4 ? 1 : 16;
  }
  c.scale_tiles.assign(tiles * c.groups * 16, 1.0f);
  return c;
}

// x [rows, k] through the identity: the values of its packed rows, code * scale.
inline std::vector<float> read_back(const Kernels& kernels, const Source& source, int64_t rows,
                                    int64_t group, Granularity granularity) {
  const int64_t k = source.inputs;
  const Case same = identity(k, group);
  const Packed packed(kernels, source, granularity, rows, group, 0.0f);
  std::vector<float> y(rows * k, NAN);
  multiply(kernels, same.weight(), packed.rows, {y.data(), nullptr, k, 0}, 0, ceil_div(k, 16));
  return y;
}

inline float normalized(const float* x, int64_t k, const Source& source, int64_t i) {
  double mean = 0.0, square = 0.0;
  for (int64_t j = 0; j < k; ++j) mean += x[j] / double(k);
  if (source.norm == Norm::kRms) mean = 0.0;
  for (int64_t j = 0; j < k; ++j) square += std::pow(x[j] - mean, 2.0) / double(k);
  const double y = (x[i] - mean) / std::sqrt(square + 1e-5);
  return static_cast<float>(y * (source.norm_weight ? source.norm_weight[i] : 1.0f) +
                            (source.norm_bias ? source.norm_bias[i] : 0.0f));
}

// The norm against doubles; then the packed rows against the kernels' normalized floats, bit for
// bit: the rounding of a norm depends on the instruction set, that of the operations after it does
// not.
inline void check_norm(const Kernels& kernels, Random& r) {
  const int64_t k = draw(r, 1, 200), rows = draw(r, 1, 11);
  const int64_t group = draw(r, 0, 1) ? 32 : k;
  const std::vector<float> x = floats(r, rows * k), weight = floats(r, k), bias = floats(r, k);
  const bool weighed = draw(r, 0, 1) == 1, biased = draw(r, 0, 1) == 1;
  const Norm norm = draw(r, 0, 1) ? Norm::kRms : Norm::kLayer;
  const Source source = {
      x.data(), norm, weighed ? weight.data() : nullptr, biased ? bias.data() : nullptr, 1e-5f, k};
  const auto wide = read_back(kernels, source, rows, group, Granularity::kFloat);
  const auto narrow = read_back(kernels, source, rows, group, Granularity::kGroup);
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> found(ceil_div(k, 16) * 16, NAN), scratch(k + 16);
    kernels.normalize_row(source, row, found.data());
    for (int64_t i = 0; i < k; ++i) {
      const float y = normalized(x.data() + row * k, k, source, i);
      expect(std::fabs(found[i] - y) <= 1e-4 * (1.0 + std::fabs(y)), "norm", row, i, k);
      expect(wide[row * k + i] == found[i], "packed float", row, i, k);
      const int64_t first = i / group * group, count = std::min(k - first, group);
      const float scale = scale_of(found.data() + first, count);
      expect(narrow[row * k + i] == code_of(found[i], scale) * scale, "code", row, i, k);
    }
    const float largest = kernels.row_absmax(source, row, scratch.data());
    expect(int8_scale(largest) == scale_of(found.data(), k), "absmax", row, 0, k);
  }
}

}  // namespace planish
