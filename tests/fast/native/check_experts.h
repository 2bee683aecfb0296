// Router logits, and the weighted sum of a row's expert outputs.
#pragma once

#include "check_support.h"

namespace planish {

inline void check_router(const Kernels& kernels, Random& r) {
  const int64_t k = draw(r, 1, 200), experts = draw(r, 1, 20);
  std::vector<float> x = floats(r, k), w = floats(r, experts * k), y(experts, 7.0f);
  std::vector<float> padded(x);
  padded.resize(ceil_div(k, 16) * 16, 0.0f);
  const int64_t first = draw(r, 0, static_cast<int>(experts) - 1);
  kernels.score_experts(padded.data(), w.data(), k, first, experts, y.data());
  for (int64_t n = 0; n < experts; ++n) {
    double sum = 0.0, magnitude = 0.0;
    for (int64_t i = 0; i < k; ++i) {
      sum += double(x[i]) * w[n * k + i];
      magnitude += std::fabs(double(x[i]) * w[n * k + i]);
    }
    const bool good = n < first ? y[n] == 7.0f : std::fabs(y[n] - sum) <= 8 * kEps * magnitude;
    expect(good, "router logit", n, k, first);
  }
}

inline void check_weighted_sum(const Kernels& kernels, Random& r) {
  const int64_t count = draw(r, 1, 100), experts = draw(r, 1, 9);
  std::vector<float> all = floats(r, experts * count), weights = floats(r, experts);
  std::vector<float> residual = floats(r, count), y(count);
  const bool added = draw(r, 0, 1);
  std::vector<const float*> outputs;
  for (int64_t e = 0; e < experts; ++e) outputs.push_back(all.data() + e * count);
  kernels.weighted_sum(outputs.data(), weights.data(), experts, added ? residual.data() : nullptr,
                       y.data(), count);
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0.0f;
    for (int64_t e = 0; e < experts; ++e) {
      const float product = weights[e] * all[e * count + i];
      sum = sum + product;
    }
    expect(y[i] == (added ? residual[i] + sum : sum), "weighted sum", i, count, experts);
  }
}

}  // namespace planish
