// Products of float rows with tiles of float columns, for weight-only linears and for attention.
#pragma once

#include <type_traits>

#include "../table.h"
#include "../vector/unroll.h"

namespace planish::PLANISH_ISA {

template <class V>
PLANISH_INLINE inline typename V::Floats column(const float* p) {
  return V::load(p);
}
template <class V>
PLANISH_INLINE inline typename V::Floats column(const int8_t* p) {
  return V::to_floats(V::widen(p));
}

// sum[r][c * 16 ..] += x[k * kStepK + r * kStepR] * w[c][k * w_step ..], k ascending, fused.
// One chain of additions for each sum: the result does not depend on R or C. The memory `ahead`
// entries after each column is prefetched. Columns are floats, or codes that become floats here.
template <class V, int R, int C, int kStepK, int kStepR, class W>
PLANISH_INLINE inline void add_float_products(const float* x, const W* const (&w)[C],
                                              int64_t w_step, int64_t ahead, int64_t count,
                                              float* sum, int64_t sum_stride) {
  typename V::Floats total[R * C];
  unroll<R * C>(
      [&](auto i) PLANISH_INLINE { total[i] = V::load(sum + i / C * sum_stride + i % C * kTile); });
  for (int64_t k = 0; k < count; ++k) {
    typename V::Floats columns[C];
    unroll<C>([&](auto c) PLANISH_INLINE {
      columns[c] = column<V>(w[c] + k * w_step);
      __builtin_prefetch(w[c] + k * w_step + ahead);
    });
    unroll<R>([&](auto r) PLANISH_INLINE {
      const auto value = V::floats(x[k * kStepK + r * kStepR]);
      unroll<C>([&](auto c) PLANISH_INLINE {
        total[r * C + c] = V::fma(value, columns[c], total[r * C + c]);
      });
    });
  }
  unroll<R * C>(
      [&](auto i) PLANISH_INLINE { V::store(sum + i / C * sum_stride + i % C * kTile, total[i]); });
}

// The same for any number of tiles: as many rows and tiles at a time as there are registers.
template <class V, int R, int kStepK, int kStepR, class W>
void float_products(const float* x, const W* w, int64_t w_step, int64_t w_tile, int64_t tiles,
                    int64_t ahead, int64_t count, float* sum, int64_t sum_stride) {
  constexpr int N = kAtOnce<V, R>, C = N == V::kRowsAtOnce ? V::kTiles : 2 * V::kTiles;
  const auto multiply = [&](const auto& columns, auto width) PLANISH_INLINE {
    for (int r = 0; r < R; r += N) {
      add_float_products<V, N, width, kStepK, kStepR>(x + r * kStepR, columns, w_step, ahead, count,
                                                      sum + r * sum_stride, sum_stride);
    }
  };
  for (; tiles >= C; tiles -= C, w += C * w_tile, sum += C * kTile) {
    const W* columns[C];
    for (int c = 0; c < C; ++c) columns[c] = w + c * w_tile;
    multiply(columns, std::integral_constant<int, C>{});
  }
  for (; tiles > 0; --tiles, w += w_tile, sum += kTile) {
    const W* const one[1] = {w};
    multiply(one, std::integral_constant<int, 1>{});
  }
}

}  // namespace planish::PLANISH_ISA
