// INT8 x INT8 and INT4 x INT8 products of quantized rows with tiles of weights.
#pragma once

#include "../table.h"
#include "../vector/unroll.h"
#include "pack.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kScalesAhead = 1024;  // the same for a stream of scales

// Adds the products of one block of C tiles of INT4 codes, if the set has a dot product of all its
// eight inputs, with R of the P rows of a row tile to sum[R * C].
template <class V, int P, int R, int C>
PLANISH_INLINE inline void add_pairs(typename V::Ints (&sum)[R * C],
                                     const typename V::Bytes (&weights)[2 * C], const int8_t* x) {
  unroll<R>([&](auto r) PLANISH_INLINE {
    const auto first = V::four(x + r * 4), second = V::four(x + (P + r) * 4);
    unroll<C>([&](auto c) PLANISH_INLINE {
      V::dot_int4(sum[r * C + c], weights[c], first, weights[C + c], second);
    });
  });
}

// The same of blocks first..last, of codes of any set.
template <class V, int kBits, int P, int R, int C, bool kStream>
PLANISH_INLINE inline void add_products(typename V::Ints (&sum)[R * C],
                                        const uint8_t* const (&w)[C], const int8_t* x,
                                        int64_t first, int64_t last) {
  constexpr int kSteps = kBits == 8 ? 1 : 2;
  constexpr bool kPairs = kBits == 4 && V::kInt4Pairs;
  // one chain of dot products would be too slow
  constexpr bool kTwoChains = kBits == 4 && R == 1 && !kPairs;
  typename V::Ints second[C];
  if constexpr (kTwoChains) unroll<C>([&](auto c) PLANISH_INLINE { second[c] = V::ints(0); });
  for (int64_t b = first; b < last; ++b) {
    typename V::Bytes weights[2 * C];
    unroll<C>([&](auto c) PLANISH_INLINE {
      const uint8_t* p = w[c] + b * kTileBytes;
      if constexpr (kStream) __builtin_prefetch(p + kAhead);
      if constexpr (kBits == 8) weights[c] = V::int8_weights(p);
      else V::int4_weights(p, weights[c], weights[C + c]);
    });
    if constexpr (kPairs) {
      add_pairs<V, P, R, C>(sum, weights, x + b * 2 * P * 4);
    } else {
      unroll<kSteps * R>([&](auto i) PLANISH_INLINE {
        const auto four = V::four(x + ((b * kSteps + i / R) * P + i % R) * 4);
        unroll<C>([&](auto c) PLANISH_INLINE {
          if constexpr (kBits == 8) {
            V::dot_int8(sum[i * C + c], weights[c], four);
          } else {
            auto& into = kTwoChains && i / R ? second[c] : sum[i % R * C + c];
            V::dot_int4(into, weights[i / R * C + c], four);
          }
        });
      });
    }
  }
  if constexpr (kTwoChains) {
    unroll<C>([&](auto c) PLANISH_INLINE { sum[c] = V::add(sum[c], second[c]); });
  }
}

// What a zero point of the inputs adds to each sum of a tile: zero * (sum of the weights' codes).
template <class V>
PLANISH_INLINE inline typename V::Ints input_shift(const Weight& w, const int8_t* zero,
                                                   int64_t tile) {
  return V::multiply(V::load_ints(w.code_sums + tile * kTile), V::ints(*zero));
}

// Initial values of the sums: minus the zero point times the sum of the row's codes.
template <class V, int kBits, int R, int C>
PLANISH_INLINE inline void start_sums(typename V::Ints (&sum)[R * C], const Weight& w, int64_t tile,
                                      int64_t group, const int32_t* row_sums) {
  const bool stored = kBits == 4 && w.zero;
  unroll<R * C>([&](auto i) PLANISH_INLINE {
    if (!stored) {  // 8 or 128 times the sum; in a long row it wraps, and wraps back later
      constexpr int shift = kBits == 8 && V::kInt8Zero == 0 ? 0 : kBits == 8 ? 7 : 3;
      const auto row_sum = V::ints(kBits == 8 && V::kInt8Zero == 0 ? 0 : row_sums[i / C]);
      sum[i] = V::subtract(V::ints(0), V::template shift_left<shift>(row_sum));
    } else {
      const auto zero = V::widen(w.zero + ((tile + i % C) * w.groups + group) * kTile);
      sum[i] = V::subtract(V::ints(0), V::multiply(zero, V::ints(row_sums[i / C])));
    }
  });
}

// 16 floats or halves from entry `at` on.
template <class V>
PLANISH_INLINE inline typename V::Floats load_either(const void* p, bool half, int64_t at) {
  return half ? V::load_half(static_cast<const uint16_t*>(p) + at)
              : V::load(static_cast<const float*>(p) + at);
}

template <class V, bool kStream = false>
PLANISH_INLINE inline typename V::Floats group_scale(const Weight& w, int64_t tile, int64_t group) {
  const int64_t at = (tile * w.groups + group) * kTile;
  if constexpr (kStream) {
    const int64_t bytes = at * (w.half_scale ? 2 : 4);
    __builtin_prefetch(static_cast<const uint8_t*>(w.scale) + bytes + kScalesAhead);
  }
  return load_either<V>(w.scale, w.half_scale, at);
}

// Adds bias, then residual, and writes the outputs that exist.
template <class V>
PLANISH_INLINE inline void finish(const Weight& w, const Output& out, int64_t tile, int64_t row,
                                  typename V::Floats value) {
  const int64_t at = tile * kTile, left = w.outputs - at;
  const int64_t y = row * out.stride + at - out.first;
  if (left >= kTile) {
    if (w.bias) value = V::add(value, V::load(w.bias + at));
    if (out.residual) value = V::add(V::load(out.residual + y), value);
    if (out.stream) V::stream(out.y + y, value);
    else V::store(out.y + y, value);
  } else {
    if (w.bias) value = V::add(value, V::load_part(w.bias + at, left));
    if (out.residual) value = V::add(V::load_part(out.residual + y, left), value);
    V::store_part(out.y + y, value, left);
  }
}

// (f32(sum) * a_scale) * w_scale
template <class V, int P, int R, int C, bool kStream>
void int8_tile(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row,
               int64_t offset) {
  const uint8_t* codes[C];
  for (int c = 0; c < C; ++c) codes[c] = w.codes + (tile + c) * w.blocks * kTileBytes;
  typename V::Ints sum[R * C];
  start_sums<V, 8, R, C>(sum, w, tile, 0, rows.sums + row + offset);
  if (rows.zero) {
    unroll<C>([&](auto c) PLANISH_INLINE {
      const auto shift = input_shift<V>(w, rows.zero, tile + c);
      unroll<R>([&](auto r)
                    PLANISH_INLINE { sum[r * C + c] = V::subtract(sum[r * C + c], shift); });
    });
  }
  const int8_t* x = rows.codes + row * rows.steps * 4 + offset * 4;
  row += offset;
  add_products<V, 8, P, R, C, kStream>(sum, codes, x, 0, w.blocks);
  const float* scale = static_cast<const float*>(w.scale);
  unroll<C>([&](auto c) PLANISH_INLINE {
    const int64_t at = (tile + c) * kTile, left = w.outputs - at;
    const auto w_scale = w.one_scale     ? V::floats(scale[0])
                         : left >= kTile ? V::load(scale + at)
                                         : V::load_part(scale + at, left);
    unroll<R>([&](auto r) PLANISH_INLINE {
      const auto a_scale = V::floats(rows.scales[row + r]);
      const auto value = V::multiply(V::to_floats(sum[r * C + c]), a_scale);
      finish<V>(w, out, tile + c, row + r, V::multiply(value, w_scale));
    });
  });
}

// sum over groups of (f32(sum) * w_scale) * a_scale, or (sum of f32(sum) * w_scale) * a_scale
template <class V, int P, int R, int C, bool kStream>
void int4_tile(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row,
               int64_t offset) {
  const uint8_t* codes[C];
  for (int c = 0; c < C; ++c) codes[c] = w.codes + (tile + c) * w.blocks * kTileBytes;
  const int8_t* x = rows.codes + row * rows.steps * 4 + offset * 4;
  const float* scales = rows.scales + row * rows.scale_groups + offset;
  const int32_t* row_sums = rows.sums + row * rows.groups + offset;
  const bool per_group = rows.granularity == Granularity::kGroup;
  alignas(64) float total[R * C][kTile] = {};
  for (int64_t g = 0; g < w.groups; ++g) {
    typename V::Ints sum[R * C];
    start_sums<V, 4, R, C>(sum, w, tile, g, row_sums + g * P);
    const int64_t first = g * w.group_blocks, end = first + w.group_blocks;
    add_products<V, 4, P, R, C, kStream>(sum, codes, x, first, end < w.blocks ? end : w.blocks);
    unroll<C>([&](auto c) PLANISH_INLINE {
      const auto w_scale = group_scale<V, kStream>(w, tile + c, g);
      unroll<R>([&](auto r) PLANISH_INLINE {
        auto part = V::multiply(V::to_floats(sum[r * C + c]), w_scale);
        if (per_group) part = V::multiply(part, V::floats(scales[g * P + r]));
        V::store(total[r * C + c], V::add(V::load(total[r * C + c]), part));
      });
    });
  }
  unroll<R * C>([&](auto i) PLANISH_INLINE {
    auto value = V::load(total[i]);
    if (!per_group) value = V::multiply(value, V::floats(scales[i / C]));
    finish<V>(w, out, tile + i % C, row + offset + i / C, value);
  });
}

// One row tile of P rows, as many rows at once as there are registers for sums.
template <class V, int P, int C, bool kStream>
void some_rows(const Weight& w, const Rows& rows, const Output& out, int64_t tile, int64_t row) {
  constexpr int R = kAtOnce<V, P>;
  for (int64_t offset = 0; offset < P; offset += R) {
    if (rows.zero) {
      int8_tile<typename V::AnyCodes, P, R, C, kStream>(w, rows, out, tile, row, offset);
    } else if (w.bits == 8) int8_tile<V, P, R, C, kStream>(w, rows, out, tile, row, offset);
    else int4_tile<V, P, R, C, kStream>(w, rows, out, tile, row, offset);
  }
}

// All rows for C tiles, so that the tiles stay in the nearest cache.
template <class V, int C, bool kStream>
void all_rows(const Weight& w, const Rows& rows, const Output& out, int64_t tile) {
  for (int64_t row = 0; row < rows.rows;) {
    const int64_t size = row_tile(rows.rows - row);
    if (size == 8) some_rows<V, 8, C, kStream>(w, rows, out, tile, row);
    else if (size == 4) some_rows<V, 4, C, kStream>(w, rows, out, tile, row);
    else if (size == 2) some_rows<V, 2, C, kStream>(w, rows, out, tile, row);
    else some_rows<V, 1, C, kStream>(w, rows, out, tile, row);
    row += size;
  }
}

// With few rows, limited by memory, one stream of weights; with many, kTiles tiles at a time.
template <class V>
void integer_tiles(const Weight& w, const Rows& rows, const Output& out, int64_t tile,
                   int64_t count) {
  const int64_t end = tile + count;
  if (rows.rows > kRowTile) {
    for (; tile + V::kTiles <= end; tile += V::kTiles) {
      all_rows<V, V::kTiles, false>(w, rows, out, tile);
    }
  }
  for (; tile < end; ++tile) all_rows<V, 1, true>(w, rows, out, tile);
}

// `rounds` times 16 independent products of 64 bytes with 4: 2048 operations a round.
template <class V>
int32_t multiply_registers(int64_t rounds) {
  typename V::Ints sum[16];
  unroll<16>([&](auto i) PLANISH_INLINE { sum[i] = V::ints(i); });
  const uint8_t weights[kTileBytes] = {1, 2, 3};
  const int8_t inputs[4] = {1, -1, 1, -1};
  const auto w = V::int8_weights(weights);
  const auto four = V::four(inputs);
  for (int64_t round = 0; round < rounds; ++round) {
    unroll<16>([&](auto i) PLANISH_INLINE { V::dot_int8(sum[i], w, four); });
  }
  typename V::Ints total = V::ints(0);
  unroll<16>([&](auto i) PLANISH_INLINE { total = V::add(total, sum[i]); });
  return V::sum(total);
}

}  // namespace planish::PLANISH_ISA
