// Which experts a row goes through, as one FFI call: its norm, the router's scores, their softmax and
// the largest of it. For a few rows; of many XLA makes one matrix product.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "ffi_buffers.h"
#include "ffi_experts.h"
#include "ffi_linears.h"
#include "kernels.h"

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

// Scores [rows, experts] of normalized rows [rows, padded], all threads sharing the router.
inline void score_rows(const Kernels& kernels, ffi::ThreadPool& pool, const float* x, int64_t padded,
                       const float* router, int64_t inputs, int64_t rows, int64_t experts,
                       float* scores) {
  const int64_t many = std::max<int64_t>(1, kLeastBytes / 4 / inputs);  // of one unit
  shared(pool, ceil_div(experts, many), experts * inputs, [&](int64_t unit) {
    const int64_t first = unit * many, last = std::min(first + many, experts);
    for (int64_t r = 0; r < rows; ++r) {
      kernels.score(x + r * padded, router, inputs, first, last, scores + r * experts);
    }
  });
}

// Buffers: x [rows, inputs], norm weight, norm bias, router [experts, inputs]. Results: norm(x),
// shares [rows, places], chosen int32 [rows, places].
inline ffi::Error route(ffi::ThreadPool pool, std::string_view isa, std::string_view norm, float eps,
                        bool norm_weight, bool norm_bias, bool normalized,
                        ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  if (!in.good()) return in.error();
  if (x->dimensions().size() != 2 || x->element_count() < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [rows, inputs]");
    return in.error();
  }
  const int64_t rows = x->dimensions()[0], k = x->dimensions()[1];
  Source source = {static_cast<const float*>(x->untyped_data()), norm_of(norm, in), nullptr,
                   nullptr, eps, k};
  if (norm_weight) source.norm_weight = in.data<float>("norm weight", ffi::DataType::F32, k);
  if (norm_bias) source.norm_bias = in.data<float>("norm bias", ffi::DataType::F32, k);
  ffi::AnyBuffer* router = in.good() ? in.next("router", {ffi::DataType::F32}, -1) : nullptr;
  if (router && (router->dimensions().size() != 2 || router->dimensions()[1] != k)) {
    in.fail("router is " + shape_text(*router) + ", expected [experts, " + std::to_string(k) + "]");
  }
  const int64_t experts = in.good() ? router->dimensions()[0] : 0;
  float* n = in.result<float>("norm of x", ffi::DataType::F32, rows * k);
  ffi::AnyBuffer* shares = in.next_result("shares", ffi::DataType::F32);
  if (!in.good()) return in.error();
  const int64_t places = static_cast<int64_t>(shares->element_count()) / rows;
  if (places < 1 || places > experts ||
      static_cast<int64_t>(shares->element_count()) != places * rows) {
    in.fail("shares are " + shape_text(*shares) + ", expected [" + std::to_string(rows) +
            ", 1 to " + std::to_string(experts) + "]");
  }
  int32_t* chosen = in.result<int32_t>("chosen", ffi::DataType::S32, rows * places);
  in.end();
  if (!in.good()) return in.error();
  const int64_t padded = ceil_div(k, kTile) * kTile;
  float* normal = scratch<float>(0, rows * padded);
  float* scores = scratch<float>(2, rows * experts);
  Rows one = {};
  one.granularity = Granularity::kFloat;
  one.rows = 1;
  one.steps = padded / 4;
  for (int64_t r = 0; r < rows; ++r) {
    Source row = source;
    row.x += r * k;
    one.floats = normal + r * padded;
    kernels->prepare_row(row, one, 0, 0.0f, scratch<float>(4, k + 32));
    std::copy(one.floats, one.floats + k, n + r * k);
  }
  score_rows(*kernels, pool, normal, padded, static_cast<const float*>(router->untyped_data()), k,
             rows, experts, scores);
  for (int64_t r = 0; r < rows; ++r) {
    choose_experts(scores + r * experts, experts, places, normalized,
                   static_cast<float*>(shares->untyped_data()) + r * places, chosen + r * places);
  }
  return ffi::Error::Success();
}

}  // namespace planish
