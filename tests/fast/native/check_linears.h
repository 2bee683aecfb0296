// Linears against reference/linear.py, written out for one output: integer ones bit for bit, float
// ones within the rounding error of K sequential additions.
#pragma once

#include <cstring>

#include "check_cases.h"

namespace planish {

// One output in the order of operations of reference/linear.py, and its tolerance. x: in the order
// of the weight's columns.
inline float naive(const Case& c, Granularity granularity, float given, const float* x, int64_t i,
                   double added, double& tolerance) {
  float y = 0.0f;
  double exact = 0.0, magnitude = 0.0;
  const bool is_given = granularity == Granularity::kGiven;
  const float row = is_given ? given : scale_of(x, c.k);
  for (int64_t g = 0; g < c.groups; ++g) {
    const int64_t first = g * c.group, last = std::min(c.k, first + c.group);
    const bool own = granularity == Granularity::kGroup;
    const float a = own ? scale_of(x + first, last - first) : row;
    const float w = c.scale[i * c.groups + g];
    int64_t sum = 0;
    for (int64_t j = first; j < last; ++j) {
      const bool centred = c.bits == 4 && !c.has_offset;
      const int code = c.codes[i * c.k + j] - (centred ? c.zeros[i * c.groups + g] : 0);
      const double added = c.has_offset ? double(x[j]) * c.offset[i * c.groups + g] : 0.0;
      const int around = code_around(x[j], a, c.input_zero) - c.input_zero;
      sum += (is_given && c.around ? around : code_of(x[j], a)) * code;
      exact += static_cast<double>(x[j]) * code * w + added;
      magnitude += std::fabs(static_cast<double>(x[j]) * code * w) + std::fabs(added);
    }
    const float total = static_cast<float>(sum);
    if (c.bits == 8) y = (total * a) * w;
    else if (own) y = y + (total * w) * a;
    else y = y + total * w;
  }
  const float bias = c.bias.empty() ? 0.0f : c.bias[i];
  tolerance = 0.0;
  if (granularity == Granularity::kFloat) {
    magnitude += std::fabs(bias) + std::fabs(added);
    tolerance = kEps * (16 + 0.5 * static_cast<double>(c.k)) * magnitude;
    return static_cast<float>(exact + bias + added);
  }
  if (c.bits == 4 && granularity != Granularity::kGroup) y = y * row;
  return static_cast<float>(added) + (y + bias);
}

inline Granularity random_granularity(Random& r, int bits) {
  const int which = draw(r, 0, 3);
  if (which == 0) return Granularity::kFloat;
  if (which == 1) return Granularity::kRow;
  return bits == 4 ? Granularity::kGroup : Granularity::kGiven;
}

// The zero point of rows that a case multiplies, or null.
inline const int8_t* zero_of(const Case& c, Granularity granularity) {
  return c.around && granularity == Granularity::kGiven ? &c.input_zero : nullptr;
}

// Packed rows in memory of exactly the size that the kernels ask for.
struct Packed {
  std::vector<float> memory;
  PackedRows rows;

  Packed(const Kernels& kernels, const Source& source, Granularity granularity, int64_t count,
         int64_t group, float given, bool totals = false, const int8_t* zero = nullptr)
      : rows{nullptr, granularity, count, source.inputs, ceil_div(source.inputs, group),
             group,   totals,      zero} {
    memory.resize(ceil_div(kernels.packed_bytes(rows), 4));
    rows.memory = reinterpret_cast<uint8_t*>(memory.data());
    std::vector<float> scratch((source.inputs + 16) * (source.order ? 2 : 1));
    for (int64_t row = 0; row < count; ++row) {
      kernels.pack_row(source, rows, row, given, scratch.data());
    }
  }
};

// Whether so many rows of floats are multiplied by matrix tiles, in their own order.
inline bool floats_by_tiles(const Kernels& kernels, Granularity granularity, int64_t rows) {
  const bool tiles = std::strncmp(kernels.name, "amx", 3) == 0;
  return tiles && granularity == Granularity::kFloat && rows > kernels.few_rows;
}

// A thread that multiplied has no matrix tiles configured: other code of it would run with them.
inline void expect_no_tiles(const Kernels& kernels) {
#ifdef __x86_64__
  if (std::strcmp(kernels.name, "amx") != 0) return;
  alignas(64) uint8_t config[64] = {1};
  asm volatile("sttilecfg %0" : "=m"(config));
  for (int i = 0; i < 64; ++i) expect(config[i] == 0, "tiles left configured", i, config[i], 0);
#else
  (void)kernels;
#endif
}

// `count` tiles from `tile` on, as one thread computes a unit of work.
inline void multiply(const Kernels& kernels, const Weight& w, const PackedRows& rows,
                     const Output& out, int64_t tile, int64_t count) {
  std::vector<float> memory(kernels.multiply_scratch(rows));
  if (kernels.begin_unit) kernels.begin_unit(rows);
  kernels.multiply(w, rows, out, tile, count, memory.data());
  if (kernels.end_unit) kernels.end_unit(rows);
  expect_no_tiles(kernels);
}

// Every other row consists of ties, or of the floats next to ties, where x / scale and
// x * (1 / scale) round to different codes. Each group contains the row's largest entry.
inline std::vector<float> random_rows(Random& r, int64_t rows, int64_t k, float given) {
  std::vector<float> x = floats(r, rows * k);
  for (int64_t i = 0; i < rows * k; ++i) {
    if (i / k % 2 == 0) continue;
    const float most = x[i / k * k], scale = given > 0.0f ? given : scale_of(&most, 1);
    const float tie = static_cast<float>(draw(r, -127, 126) + 0.5) * scale;
    const int which = draw(r, 0, 2);
    x[i] = i % k % 32 == 0 ? most : which == 0 ? tie : std::nextafter(tie, which == 1 ? 9.f : -9.f);
  }
  return x;
}

// The source as a weight's columns are ordered; and one row.
inline Source in_order(Source source, const Case& c) {
  source.order = c.order.empty() ? nullptr : c.order.data();
  return source;
}

inline std::vector<float> in_order(const Case& c, const float* row) {
  std::vector<float> x(row, row + c.k);
  for (size_t i = 0; i < c.order.size(); ++i) x[i] = row[c.order[i]];
  return x;
}

// Memory that starts with a line.
struct alignas(64) Line {
  float at[16];
};

inline void check_case(const Kernels& kernels, Pool& pool, Random& r, const Case& c,
                       Granularity granularity, int64_t rows) {
  const int64_t tiles_at_once = draw(r, 1, 10);
  const float given = granularity == Granularity::kGiven ? 0.0131f : 0.0f;  // clips at 1.66
  const std::vector<float> x = random_rows(r, rows, c.k, given), added = floats(r, rows * c.n);
  const bool residual = draw(r, 0, 1) == 1;
  const Source source = {x.data(), Norm::kNone, nullptr, nullptr, 0.0f, c.k};
  const Packed prepared(kernels, in_order(source, c), granularity, rows, c.group, given,
                        c.has_offset, zero_of(c, granularity));
  std::vector<Line> lines(ceil_div(rows * c.n, 16));
  float* y = lines[0].at;
  std::fill_n(y, rows * c.n, NAN);
  const Weight w = c.weight();
  const int64_t tiles = ceil_div(c.n, 16);
  const bool stream = c.n % 16 == 0 && draw(r, 0, 1) == 1;
  const Output out = {y, residual ? added.data() : nullptr, c.n, 0, stream};
  team().run(pool, ceil_div(tiles, tiles_at_once), [&](int64_t unit) {
    const int64_t tile = unit * tiles_at_once;
    const int64_t count = std::min(tiles_at_once, tiles - tile);
    multiply(kernels, w, prepared.rows, out, tile, count);
  });
  for (int64_t at = 0; at < rows * c.n; ++at) {
    double tolerance = 0.0;
    const std::vector<float> ordered = in_order(c, x.data() + at / c.n * c.k);
    const float* row = ordered.data();
    const double plus = residual ? added[at] : 0.0;
    const float expected = naive(c, granularity, given, row, at % c.n, plus, tolerance);
    const char* what = granularity == Granularity::kFloat ? "float linear" : "integer linear";
    expect(std::fabs(y[at] - expected) <= tolerance, what, at / c.n, at % c.n, c.k);
  }
}

inline void check_linear(const Kernels& kernels, Pool& pool, Random& r) {
  const Case c = random_case(r, draw(r, 0, 1) ? 8 : 4);
  check_case(kernels, pool, r, c, random_granularity(r, c.bits), draw(r, 1, 23));
}

inline void check_foreign_linear(const Kernels& kernels, Pool& pool, Random& r) {
  check_case(kernels, pool, r, random_foreign(r), Granularity::kFloat, draw(r, 1, 50));
}

// More rows, and more inputs than one chunk of matrix tiles; groups of every size.
inline void check_large_linear(const Kernels& kernels, Pool& pool, Random& r) {
  const int bits = draw(r, 0, 2) ? 4 : 8, group = 32 << draw(r, 0, 6);
  const int64_t n = draw(r, 0, 1) ? draw(r, 1, 40) : 16 * draw(r, 1, 5);
  const Case c = make_case(r, bits, n, draw(r, 1, 2100), group == 2048 ? 9999 : group);
  check_case(kernels, pool, r, c, random_granularity(r, bits), draw(r, 9, 50));
  const Case other = foreign_case(r, n, draw(r, 1, 2100), 16 << draw(r, 0, 7));
  check_case(kernels, pool, r, other, Granularity::kFloat, draw(r, 9, 50));
}

// Each number of rows gives a row the same bits, except that matrix tiles add floats in another
// order than the lanes, which few rows keep.
inline void check_row_counts(const Kernels& kernels, Random& r) {
  const bool foreign = draw(r, 0, 2) == 0;
  const Case c = foreign ? random_foreign(r) : random_case(r, draw(r, 0, 1) ? 8 : 4);
  const Granularity granularity = foreign ? Granularity::kFloat : random_granularity(r, c.bits);
  const std::vector<float> x = floats(r, 65 * c.k);
  const Source plain = {x.data(), Norm::kNone, nullptr, nullptr, 0.0f, c.k};
  const Source source = in_order(plain, c);
  std::vector<float> found[2];  // by lanes and by tiles
  for (const int64_t rows : {65, 8, 1, 9, 16, 17, 32, 33, 48, 49}) {
    std::vector<float> y(rows * c.n, NAN);
    const Packed packed(kernels, source, granularity, rows, c.group, 0.02f, c.has_offset,
                        zero_of(c, granularity));
    multiply(kernels, c.weight(), packed.rows, {y.data(), nullptr, c.n, 0}, 0, ceil_div(c.n, 16));
    std::vector<float>& first = found[floats_by_tiles(kernels, granularity, rows)];
    if (first.empty()) first = y;
    for (int64_t i = 0; i < rows * c.n; ++i) {
      expect(y[i] == first[i], "number of rows", rows, i / c.n, i % c.n);
    }
  }
}

// 9 equal rows of ones, exactly.
inline void check_ones(const Kernels& kernels, const Case& c, Granularity granularity) {
  const std::vector<float> x(9 * c.k, 1.0f);
  const Source source = {x.data(), Norm::kNone, nullptr, nullptr, 0.0f, c.k};
  const Packed packed(kernels, source, granularity, 9, c.group, 0.0f);
  std::vector<float> y(9 * c.n, NAN);
  multiply(kernels, c.weight(), packed.rows, {y.data(), nullptr, c.n, 0}, 0, 2);
  double tolerance;
  for (int64_t i = 0; i < c.n; ++i) {
    const float expected = naive(c, granularity, 0.0f, x.data(), i, 0.0, tolerance);
    for (int64_t row = 0; row < 9; ++row) {
      expect(y[row * c.n + i] == expected, "longest sum", row, i, c.k);
    }
  }
}

// What occurs once: rows beyond those whose sums are kept at a time; the longest sums, of 133,144
// products of 127 and 127, just below 2^31; and the largest of a group, of products of 127 and 15.
inline void check_extremes(const Kernels& kernels, Pool& pool, Random& r) {
  check_case(kernels, pool, r, make_case(r, 8, 20, 70, 70), Granularity::kRow, 1050);
  check_case(kernels, pool, r, make_case(r, 4, 20, 600, 64), Granularity::kGroup, 530);
  for (const int code : {-127, 127}) {
    Case c = make_case(r, 8, 17, 133144, 133144);
    c.codes.assign(c.codes.size(), code);
    c.tiles.assign(c.tiles.size(), static_cast<uint8_t>(code));
    check_ones(kernels, c, Granularity::kRow);
  }
  for (const int code : {0, 15}) {
    for (const int64_t group : {1024, 4096}) {
      Case c = make_case(r, 4, 17, 2 * group, group);
      c.stored_zero = true;
      c.codes.assign(c.codes.size(), code);
      c.tiles.assign(c.tiles.size(), static_cast<uint8_t>(17 * code));
      c.zeros.assign(c.zeros.size(), 15 - code);
      c.zero_tiles.assign(c.zero_tiles.size(), static_cast<uint8_t>(15 - code));
      check_ones(kernels, c, Granularity::kGroup);
    }
  }
}

}  // namespace planish
