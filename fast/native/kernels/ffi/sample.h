// Samples a token as reference/text/sampling.py does: temperature, top_k, top_p, then the draw
// (docs/spec.md 7).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace planish {

struct Sampling {
  double temperature;  // 0 is greedy
  double top_p;        // 1 keeps the whole mass
  int64_t top_k;       // 0 keeps every token
};

constexpr int64_t kFirstSorted = 256;  // the drawn token is nearly always among them

// x [count] with its largest entry at `best`; `uniform` in [0, 1). Only as much is sorted as the
// draw needs: the likeliest 256 tokens, then eight times as many, and so on.
inline int32_t sample(const float* x, int64_t count, int32_t best, const Sampling& s,
                      double uniform) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(i);
  const auto likelier = [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; };
  if (s.top_k > 0 && s.top_k < count) {
    std::nth_element(ids.begin(), ids.begin() + s.top_k, ids.end(), likelier);
    ids.resize(s.top_k);
  }
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(x[id]) - x[best]) / s.temperature);
  };
  double mass = 0.0;
  for (int32_t id : ids) mass += weight(id);
  const int64_t kept = static_cast<int64_t>(ids.size());
  for (int64_t sorted = std::min(kFirstSorted, kept);; sorted = std::min(8 * sorted, kept)) {
    std::partial_sort(ids.begin(), ids.begin() + sorted, ids.end(), likelier);
    double before = 0.0;  // the mass of everything likelier
    int64_t keep = 0;
    while (keep < sorted && (keep == 0 || before < s.top_p)) before += weight(ids[keep++]) / mass;
    const bool complete = keep < sorted || sorted == kept;  // all that top_p keeps is sorted
    if (!complete && (s.top_p < 1.0 || uniform >= before)) continue;
    const double drawn = uniform * (complete ? before : 1.0);
    double cumulative = 0.0;
    for (int64_t i = 0; i < keep; ++i) {
      cumulative += weight(ids[i]) / mass;
      if (drawn < cumulative) return ids[i];
    }
    return ids[keep - 1];
  }
}

}  // namespace planish
