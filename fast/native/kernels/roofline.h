// Peak rate of memory: bytes read as the kernels read weights.
#pragma once

#include "table.h"
#include "vector/unroll.h"

namespace planish::PLANISH_ISA {

// Reads `blocks` times 64 bytes, like a linear; the result depends on all of them.
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

}  // namespace planish::PLANISH_ISA
