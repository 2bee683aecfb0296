// What this machine can do at most: bytes read from memory, and products of bytes in registers.
#pragma once

#include "integer_linear.h"

namespace planish::PLANISH_ISA {

// Reads `blocks` times 64 bytes as the kernels do, and little else; returns something of them all.
template <class V>
int32_t read_blocks(const uint8_t* p, int64_t blocks) {
  typename V::Ints most[4] = {V::ints(0), V::ints(0), V::ints(0), V::ints(0)};
  for (int64_t b = 0; b < blocks; b += 4) {
    unroll<4>([&](auto i) PLANISH_INLINE {
      const uint8_t* block = p + (b + i) * kTileBytes;
      __builtin_prefetch(block + kAhead);
      most[i] = V::max(most[i], V::load_ints(block));
    });
  }
  return V::largest(V::max(V::max(most[0], most[1]), V::max(most[2], most[3])));
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
