// Which experts a row goes through: its norm, the router's scores, their softmax and the largest
// of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linears.h"

namespace planish {

// scores [count] -> the `places` largest of their softmax, the first among equals, and where they
// are; `normalized`: divided by their sum.
inline void choose_experts(float* scores, int64_t count, int64_t places, bool normalized,
                           float* shares, int32_t* chosen) {
  float largest = scores[0], sum = 0.0f, kept = 0.0f;
  for (int64_t e = 1; e < count; ++e) largest = std::max(largest, scores[e]);
  for (int64_t e = 0; e < count; ++e) {
    scores[e] = std::exp(scores[e] - largest);
    sum += scores[e];
  }
  std::vector<bool> taken(count, false);
  for (int64_t p = 0; p < places; ++p) {
    int64_t best = -1;
    for (int64_t e = 0; e < count; ++e) {
      if (!taken[e] && (best < 0 || scores[e] > scores[best])) best = e;
    }
    taken[best] = true;
    chosen[p] = static_cast<int32_t>(best);
    shares[p] = scores[best] / sum;
    kept += shares[p];
  }
  for (int64_t p = 0; p < places && normalized; ++p) shares[p] /= kept;
}

// A router and what it makes of some rows.
struct Router {
  const float* weight;  // [experts, inputs]
  int64_t rows, experts, places;
  bool normalized;
  float* norm;      // [rows, inputs]: norm(x)
  float* shares;    // [rows, places]
  int32_t* chosen;  // [rows, places]
};

// Scores [rows, experts] of normalized rows [rows, padded]; all threads share the router.
template <class Pool>
void score_rows(const Kernels& kernels, Pool& pool, const float* x, int64_t padded,
                const Router& router, int64_t inputs, float* scores) {
  const int64_t experts = router.experts;
  const int64_t many = std::max<int64_t>(1, kLeastBytes / 4 / inputs);  // of one unit
  run_units(pool, ceil_div(experts, many), experts * inputs, [&](int64_t unit) {
    const int64_t first = unit * many, last = std::min(first + many, experts);
    for (int64_t r = 0; r < router.rows; ++r) {
      kernels.score(x + r * padded, router.weight, inputs, first, last, scores + r * experts);
    }
  });
}

template <class Pool>
void route_rows(const Kernels& kernels, Pool& pool, const Source& source, const Router& router) {
  const int64_t k = source.inputs, padded = ceil_div(k, kTile) * kTile;
  float* normal = scratch<float>(Scratch::kRouted, router.rows * padded);
  float* scores = scratch<float>(Scratch::kScores, router.rows * router.experts);
  for (int64_t r = 0; r < router.rows; ++r) {
    kernels.normalize_row(source, r, normal + r * padded);
    std::copy(normal + r * padded, normal + r * padded + k, router.norm + r * k);
  }
  score_rows(kernels, pool, normal, padded, router, k, scores);
  for (int64_t r = 0; r < router.rows; ++r) {
    choose_experts(scores + r * router.experts, router.experts, router.places, router.normalized,
                   router.shares + r * router.places, router.chosen + r * router.places);
  }
}

}  // namespace planish
