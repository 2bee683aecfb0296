// Attention over a ring of slots has the bits of the same sequence in one chunk over as many slots
// as it has tokens.
#pragma once

#include "check_attention.h"

namespace planish {

// A scene of several hundred tokens, each of which reads those of a window.
inline Scene random_window(Random& r) {
  Scene s = random_scene(r, true);
  s.a.window = draw(r, 1, 1 + int(s.a.slots) / 2);
  return s;
}

inline void check_ring(const Kernels& kernels, Pool& pool, Random& r) {
  Scene s = random_window(r);
  const std::vector<float> expected = chunk(kernels, pool, s, 0, s.all);
  const int64_t most = draw(r, 1, 60), wide = s.a.heads * s.a.head_dim;
  Attention a = s.a;
  a.ring = s.a.slots;
  a.slots = ceil_div(a.window + most, kPage) * kPage;
  CacheMemory memory;
  memory.allocate(a, a.batch * a.kv_heads * a.slots);
  for (int64_t first = 0; first < s.all; first += a.tokens) {
    a.tokens = std::min<int64_t>(s.all - first, draw(r, 1, int(most)));
    const auto out = attend_tokens(kernels, pool, s, a, memory, tokens_of(s, first, a.tokens));
    for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
      const int64_t row = i / wide / a.tokens, position = first + i / wide % a.tokens;
      const float wanted = expected[(row * s.all + position) * wide + i % wide];
      expect(out[i] == wanted, "attention over a ring", row, position, i % wide);
    }
  }
}

}  // namespace planish
