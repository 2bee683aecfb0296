// Router logits, and the weighted sum of a row's expert outputs.
#pragma once

#include "check_support.h"

namespace planish {

inline void check_router(const Kernels& kernels, Random& r) {
  const int64_t rows = draw(r, 1, 9), k = draw(r, 1, 200), experts = draw(r, 1, 20);
  const int64_t stride = ceil_div(k, 16) * 16, first = draw(r, 0, static_cast<int>(experts) - 1);
  std::vector<float> x = floats(r, rows * k), w = floats(r, experts * k);
  std::vector<float> padded(rows * stride, 0.0f), y(rows * experts, 7.0f);
  for (int64_t i = 0; i < rows * k; ++i) padded[i / k * stride + i % k] = x[i];
  const auto score = [&](int64_t row, int64_t count, float* out) {
    kernels.score_experts(padded.data() + row * stride, stride, count, w.data(), k, first, experts,
                          out, experts);
  };
  score(0, rows, y.data());
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> alone(experts, 7.0f);
    score(row, 1, alone.data());
    for (int64_t n = 0; n < experts; ++n) {
      double sum = 0.0, magnitude = 0.0;
      for (int64_t i = 0; i < k; ++i) {
        sum += double(x[row * k + i]) * w[n * k + i];
        magnitude += std::fabs(double(x[row * k + i]) * w[n * k + i]);
      }
      const float found = y[row * experts + n];
      const bool good = n < first ? found == 7.0f : std::fabs(found - sum) <= 8 * kEps * magnitude;
      expect(good && found == alone[n], "router logit", n, k, first);
    }
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
