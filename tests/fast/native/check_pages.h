// Attention over pages, of any mixture of rows, has the bits of each sequence in one chunk over
// contiguous slots.
#pragma once

#include <numeric>

#include "check_attention.h"

namespace planish {

// A cache of pages in any order; those that no row has are never touched.
struct Pages {
  std::vector<int32_t> table;  // [batch, row_pages]
  CacheMemory memory;
  int64_t row_pages;

  Pages(Random& r, const Attention& a) : row_pages(ceil_div(a.slots, kPage) + draw(r, 0, 1)) {
    const int64_t count = a.batch * row_pages + draw(r, 0, 3);
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), r);
    table.assign(order.begin(), order.begin() + a.batch * row_pages);
    memory.allocate(a, count * a.kv_heads * kPage);
  }
};

// Tokens of one sequence.
struct Piece {
  int64_t row, first, count;
};

// Writes and attends some pieces in one call, with padding after them.
inline std::vector<float> ragged(const Kernels& kernels, Pool& pool, Scene& s, Pages& pages,
                                 const std::vector<Piece>& pieces, int64_t padding) {
  Attention a = s.a;
  Tokens some;
  std::vector<int32_t> rows;
  const auto append = [&](std::vector<float>& to, const std::vector<float>& x, int64_t wide,
                          const Piece& p) {
    const auto begin = x.begin() + (p.row * s.all + p.first) * wide;
    to.insert(to.end(), begin, begin + p.count * wide);
  };
  for (const Piece& p : pieces) {
    append(some.q, s.q, a.heads * a.head_dim, p);
    append(some.k, s.k, a.kv_heads * a.head_dim, p);
    append(some.v, s.v, a.kv_heads * a.head_dim, p);
    for (int64_t i = 0; i < p.count; ++i) {
      some.positions.push_back(int32_t(p.first + i));
      rows.push_back(int32_t(p.row));
    }
  }
  const int64_t tokens = static_cast<int64_t>(rows.size()) + padding;
  some.q.resize(tokens * a.heads * a.head_dim, NAN);
  some.k.resize(tokens * a.kv_heads * a.head_dim, NAN);
  some.v.resize(some.k.size(), NAN);
  some.positions.resize(tokens, 0);
  rows.resize(tokens, -1);
  a.batch = 1;
  a.tokens = tokens;
  a.window = a.window == a.slots ? pages.row_pages * kPage : a.window;
  a.slots = kPage;
  a.table = pages.table.data();
  a.row_pages = pages.row_pages;
  a.rows = rows.data();
  return attend_tokens(kernels, pool, s, a, pages.memory, some);
}

// Pieces of 1 .. 40 tokens of all sequences, in turns, until each has all its tokens.
inline std::vector<std::vector<Piece>> random_steps(Random& r, const Scene& s) {
  std::vector<std::vector<Piece>> steps;
  std::vector<int64_t> done(s.a.batch, 0);
  while (*std::min_element(done.begin(), done.end()) < s.all) {
    std::vector<Piece> step;
    for (int64_t row = 0; row < s.a.batch; ++row) {
      const int64_t left = s.all - done[row];
      const int64_t count = draw(r, 0, 1) ? std::min<int64_t>(left, draw(r, 1, 40)) : 0;
      if (count > 0) step.push_back({row, done[row], count});
      done[row] += count;
    }
    if (!step.empty()) steps.push_back(step);
  }
  return steps;
}

inline void check_pages(const Kernels& kernels, Pool& pool, Random& r) {
  Scene s = random_scene(r, draw(r, 0, 1) == 1);
  const std::vector<float> expected = chunk(kernels, pool, s, 0, s.all);
  Pages pages(r, s.a);
  const int64_t wide = s.a.heads * s.a.head_dim;
  for (const std::vector<Piece>& step : random_steps(r, s)) {
    const int64_t padding = draw(r, 0, 3);
    const auto out = ragged(kernels, pool, s, pages, step, padding);
    int64_t at = 0;
    for (const Piece& p : step) {
      for (int64_t i = 0; i < p.count * wide; ++i, ++at) {
        const float wanted = expected[(p.row * s.all + p.first) * wide + i];
        expect(out[at] == wanted, "attention over pages", p.row, p.first + i / wide, i % wide);
      }
    }
    for (; at < static_cast<int64_t>(out.size()); ++at) {
      expect(out[at] == 0.0f, "attention of padding", at / wide, padding, 0);
    }
  }
}

}  // namespace planish
