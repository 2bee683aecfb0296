// Routing: the norm of a row, its router logits, their softmax and the top_k largest.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "linears.h"

namespace planish {

// Router logits `scores` [count], overwritten -> the `top_k` largest of their softmax, the lowest
// id first among equals, and the ids. normalized: the weights are divided by their sum.
inline void choose_experts(float* scores, int64_t count, int64_t top_k, bool normalized,
                           float* routing_weights, int32_t* expert_ids) {
  float largest = scores[0], sum = 0.0f, kept = 0.0f;
  for (int64_t e = 1; e < count; ++e) largest = std::max(largest, scores[e]);
  for (int64_t e = 0; e < count; ++e) {
    scores[e] = std::exp(scores[e] - largest);
    sum += scores[e];
  }
  std::vector<bool> taken(count, false);
  for (int64_t p = 0; p < top_k; ++p) {
    int64_t best = -1;
    for (int64_t e = 0; e < count; ++e) {
      if (!taken[e] && (best < 0 || scores[e] > scores[best])) best = e;
    }
    taken[best] = true;
    expert_ids[p] = static_cast<int32_t>(best);
    routing_weights[p] = scores[best] / sum;
    kept += routing_weights[p];
  }
  for (int64_t p = 0; p < top_k && normalized; ++p) routing_weights[p] /= kept;
}

constexpr int64_t kRoutedRows = 64;    // of one unit
constexpr int64_t kChoiceFloats = 16;  // that are added while one expert's share is computed

// A router and its results for some rows.
struct Router {
  const float* weight;  // [experts, inputs]
  int64_t rows, experts, top_k;
  bool normalized;
  float* norm;             // [rows, inputs]: norm(x)
  float* routing_weights;  // [rows, top_k]
  int32_t* expert_ids;     // [rows, top_k]
};

// Router logits [rows, experts] of normalized rows [rows, padded]; all threads share the work.
template <class Pool>
void score_rows(const Kernels& kernels, Pool& pool, const float* x, int64_t padded,
                const Router& router, int64_t inputs, float* scores) {
  const int64_t experts = router.experts;
  const int64_t many = std::max<int64_t>(1, kLeastBytes / 4 / inputs);  // experts of one unit
  const int64_t parts = ceil_div(experts, many), blocks = ceil_div(router.rows, kRoutedRows);
  run_units(pool, parts * blocks, router.rows * experts * inputs, [&](int64_t unit) {
    const int64_t first = unit % parts * many, last = std::min(first + many, experts);
    const int64_t row = unit / parts * kRoutedRows, end = std::min(row + kRoutedRows, router.rows);
    kernels.score_experts(x + row * padded, padded, end - row, router.weight, inputs, first, last,
                          scores + row * experts, experts);
  });
}

template <class Pool>
void route_rows(const Kernels& kernels, Pool& pool, const Source& source, const Router& router) {
  const int64_t k = source.inputs, padded = ceil_div(k, kTile) * kTile;
  float* normal = scratch<float>(Scratch::kRouted, router.rows * padded);
  float* scores = scratch<float>(Scratch::kScores, router.rows * router.experts);
  run_units(pool, router.rows, router.rows * k, [&](int64_t r) {
    kernels.normalize_row(source, r, normal + r * padded);
    std::copy(normal + r * padded, normal + r * padded + k, router.norm + r * k);
  });
  score_rows(kernels, pool, normal, padded, router, k, scores);
  const int64_t chosen = router.rows * router.experts * kChoiceFloats;
  run_units(pool, router.rows, chosen, [&](int64_t r) {
    choose_experts(scores + r * router.experts, router.experts, router.top_k, router.normalized,
                   router.routing_weights + r * router.top_k, router.expert_ids + r * router.top_k);
  });
}

}  // namespace planish
