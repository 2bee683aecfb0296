// A loop whose index is a compile-time constant, so that arrays become registers.
#pragma once

#include <cstdint>
#include <utility>

#define PLANISH_INLINE __attribute__((always_inline))

namespace planish::PLANISH_ISA {

constexpr int64_t kAhead = 2048;  // bytes that a stream of weights is prefetched ahead

// Of R rows, those whose sums have registers.
template <class V, int R>
constexpr int kAtOnce = R < V::kRowsAtOnce ? R : V::kRowsAtOnce;

template <class F, int... I>
PLANISH_INLINE inline void for_each(F&& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

template <int N, class F>
PLANISH_INLINE inline void unroll(F&& body) {
  for_each(body, std::make_integer_sequence<int, N>{});
}

}  // namespace planish::PLANISH_ISA
