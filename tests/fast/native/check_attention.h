// Attention of some tokens after a past, against the definition in doubles. Slots that have not
// been written contain NaN, which must not reach the result.
#pragma once

#include "check_support.h"
#include "work/attention.h"

namespace planish {

// The memory of a cache, before anything is written to it.
struct CacheMemory {
  std::vector<int8_t> key_codes, value_codes;
  std::vector<float> keys, values, key_scales, value_scales;

  // cells: slots of a head, of all heads together
  void allocate(const Attention& a, int64_t cells) {
    const int64_t size = cells * a.head_dim;
    key_codes.assign(a.int8 ? size : 0, 99);
    value_codes.assign(a.int8 ? size : 0, 99);
    keys.assign(a.int8 ? 0 : size, NAN);
    values.assign(a.int8 ? 0 : size, NAN);
    key_scales.assign(a.int8 ? cells : 0, NAN);
    value_scales.assign(a.int8 ? cells : 0, NAN);
  }
};

// Sizes and memory. Tokens 0..past-1 of each sequence come first, in one chunk.
struct Scene {
  Attention a = {};
  CacheMemory memory;
  int64_t past, all;                        // all = past + a.tokens
  bool calibrated = false;                  // the scales of codes
  float fixed[3] = {0.02f, 0.03f, 0.025f};  // of q, k and v: the largest values are clipped
  std::vector<float> q, k, v, cos, sin, slopes;
};

// Draws options of scores and rotary positions, each with some probability.
inline void random_options(Random& r, Scene& s) {
  Attention& a = s.a;
  a.interleaved = draw(r, 0, 2) == 0;
  a.divisor = draw(r, 1, 20) / 2.0f;
  a.window = draw(r, 0, 1) ? a.slots : draw(r, 1, int(a.slots));
  a.cap = draw(r, 0, 2) ? 0.0f : draw(r, 1, 10) / 2.0f;
  if (draw(r, 0, 1)) return;
  for (int64_t h = 0; h < a.heads; ++h) s.slopes.push_back(draw(r, 1, 1000) / 1000.0f);
  a.divided = draw(r, 0, 1) == 1;
  a.bfloat16 = draw(r, 0, 1) == 1;
}

// far: more slots than one segment of the softmax, a window over some of them, and a long past.
inline Scene random_scene(Random& r, bool far = false) {
  Scene s;
  Attention& a = s.a;
  a.batch = draw(r, 1, 2);
  a.kv_heads = draw(r, 1, 3);
  a.heads = a.kv_heads * draw(r, 1, 9);
  a.head_dim = 16 * draw(r, 1, 3);
  a.rotary = draw(r, 0, 1) ? 2 * draw(r, 1, int(a.head_dim) / 2) : 0;
  a.slots = 16 * (far || draw(r, 0, 3) == 0 ? draw(r, 20, 50) : draw(r, 1, 12));
  a.tokens = draw(r, 0, 1) ? 1 : draw(r, 1, int(std::min<int64_t>(a.slots, 20)));
  a.int8 = draw(r, 0, 1) == 1;
  a.codes = a.int8 && draw(r, 0, 1) == 1;
  s.calibrated = a.codes && draw(r, 0, 1) == 1;
  random_options(r, s);
  if (far && draw(r, 0, 1)) a.window = draw(r, 200, int(a.slots));
  s.past = draw(r, far ? int(a.slots - a.tokens) / 2 : 0, int(a.slots - a.tokens));
  s.all = s.past + a.tokens;
  const int64_t d = a.head_dim, cells = a.batch * a.kv_heads * a.slots;
  s.memory.allocate(a, cells);
  s.k = floats(r, a.batch * s.all * a.kv_heads * d);
  s.v = floats(r, s.k.size());
  s.q = floats(r, a.batch * s.all * a.heads * d);
  for (int64_t i = 0; i < s.all * a.rotary / 2; ++i) {
    const double angle = draw(r, 0, 6283) / 1000.0;
    s.cos.push_back(static_cast<float>(std::cos(angle)));
    s.sin.push_back(static_cast<float>(std::sin(angle)));
  }
  return s;
}

inline std::vector<float> some_tokens(const std::vector<float>& x, const Scene& s, int64_t wide,
                                      int64_t first, int64_t tokens) {
  std::vector<float> part;
  for (int64_t b = 0; b < s.a.batch; ++b) {
    const auto begin = x.begin() + (b * s.all + first) * wide;
    part.insert(part.end(), begin, begin + tokens * wide);
  }
  return part;
}

// What a call is given, [tokens, heads * head_dim] each.
struct Tokens {
  std::vector<float> q, k, v;
  std::vector<int32_t> positions;
};

// Writes and attends some tokens of a scene over a cache: the shape of q.
inline std::vector<float> attend_tokens(const Kernels& kernels, Pool& pool, const Scene& s,
                                        Attention a, CacheMemory& memory, const Tokens& tokens) {
  a.keys = a.int8 ? static_cast<void*>(memory.key_codes.data()) : memory.keys.data();
  a.values = a.int8 ? static_cast<void*>(memory.value_codes.data()) : memory.values.data();
  a.key_scales = s.calibrated ? nullptr : memory.key_scales.data();
  a.value_scales = s.calibrated ? nullptr : memory.value_scales.data();
  a.fixed = s.calibrated ? s.fixed : nullptr;
  std::vector<float> out(tokens.q.size(), NAN);
  a.q = tokens.q.data();
  a.k = tokens.k.data();
  a.v = tokens.v.data();
  a.cos = s.cos.data();
  a.sin = s.sin.data();
  a.slopes = s.slopes.empty() ? nullptr : s.slopes.data();
  a.positions = tokens.positions.data();
  a.out = out.data();
  run_attention(kernels, pool, a);
  return out;
}

// Tokens first..first+count-1 of all sequences.
inline Tokens tokens_of(const Scene& s, int64_t first, int64_t count) {
  const Attention& a = s.a;
  Tokens some = {some_tokens(s.q, s, a.heads * a.head_dim, first, count),
                 some_tokens(s.k, s, a.kv_heads * a.head_dim, first, count),
                 some_tokens(s.v, s, a.kv_heads * a.head_dim, first, count),
                 {}};
  for (int64_t i = 0; i < a.batch * count; ++i) {
    some.positions.push_back(int32_t(first + i % count));
  }
  return some;
}

// Writes and attends these tokens: [batch, tokens, heads * head_dim].
inline std::vector<float> chunk(const Kernels& kernels, Pool& pool, Scene& s, int64_t first,
                                int64_t tokens) {
  Attention a = s.a;
  a.tokens = tokens;
  return attend_tokens(kernels, pool, s, a, s.memory, tokens_of(s, first, tokens));
}

// Rotated in the kernels' order of operations, so that codes of keys are the same.
inline std::vector<float> rotate_head(const Scene& s, const float* x, int64_t position) {
  std::vector<float> y(x, x + s.a.head_dim);
  const int64_t half = s.a.rotary / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float c = s.cos[position * half + i], n = s.sin[position * half + i];
    const int64_t first = s.a.interleaved ? 2 * i : i;
    const int64_t second = first + (s.a.interleaved ? 1 : half);
    y[first] = x[first] * c - x[second] * n;
    y[second] = x[second] * c + x[first] * n;
  }
  return y;
}

inline std::vector<float> round_to_grid(std::vector<float> x, bool int8) {
  const float scale = scale_of(x.data(), static_cast<int64_t>(x.size()));
  for (float& value : x) value = int8 ? code_of(value, scale) * scale : value;
  return x;
}

// bfloat16 by its definition: seven bits after the leading one.
inline float as_bfloat16(float x) {
  int exponent = 0;
  const float fraction = std::frexp(x, &exponent);  // 0.5 <= |fraction| < 1
  return std::ldexp(std::nearbyint(fraction * 256.0f) / 256.0f, exponent);
}

inline double naive_score(const Scene& s, double product, int64_t h, int64_t slot,
                          int64_t position) {
  double bias = 0.0;
  if (s.a.bfloat16 && !s.slopes.empty()) {
    bias = as_bfloat16(as_bfloat16(s.slopes[h]) * as_bfloat16(static_cast<float>(slot)));
  } else if (!s.slopes.empty()) {
    bias = s.slopes[h] * static_cast<double>(slot - position);
  }
  const double divisor = s.a.divisor;
  const double score = s.a.divided ? (product + bias) / divisor : product / divisor + bias;
  return s.a.cap > 0.0f ? s.a.cap * std::tanh(score / s.a.cap) : score;
}

inline std::vector<double> naive_attention(const Scene& s, int64_t b, int64_t position, int64_t h) {
  const int64_t d = s.a.head_dim, shared = s.a.heads / s.a.kv_heads;
  std::vector<double> context(d, 0.0);
  double total = 0.0;
  const auto q = rotate_head(s, &s.q[((b * s.all + position) * s.a.heads + h) * d], position);
  const int64_t first = position + 1 - s.a.window;
  double most = -INFINITY;
  for (int64_t slot = first < 0 ? 0 : first; slot <= position; ++slot) {
    const int64_t at = ((b * s.all + slot) * s.a.kv_heads + h / shared) * d;
    const auto k = round_to_grid(rotate_head(s, &s.k[at], slot), s.a.int8);
    const auto v = round_to_grid({s.v.begin() + at, s.v.begin() + at + d}, s.a.int8);
    double score = 0.0;
    for (int64_t i = 0; i < d; ++i) score += static_cast<double>(q[i]) * k[i];
    score = naive_score(s, score, h, slot, position);
    if (score > most) {
      total *= std::exp(most - score);
      for (double& x : context) x *= std::exp(most - score);
      most = score;
    }
    const double e = std::exp(score - most);
    total += e;
    for (int64_t i = 0; i < d; ++i) context[i] += e * v[i];
  }
  for (double& x : context) x /= total;
  return context;
}

// Codes of one head and their scale; which: 0, 1, 2 for q, k, v.
struct HeadCodes {
  std::vector<double> codes;
  float scale;

  HeadCodes(const Scene& s, const std::vector<float>& x, int which) {
    scale = s.calibrated ? s.fixed[which] : scale_of(x.data(), static_cast<int64_t>(x.size()));
    for (float value : x) codes.push_back(code_of(value, scale));
  }
};

// INT8 attention by its definition (docs/spec.md 3), and what one code of a weight is worth.
struct CodedContext {
  std::vector<double> context;
  double code;
};

inline CodedContext naive_codes(const Scene& s, int64_t b, int64_t position, int64_t h) {
  const int64_t d = s.a.head_dim, shared = s.a.heads / s.a.kv_heads;
  const auto x = rotate_head(s, &s.q[((b * s.all + position) * s.a.heads + h) * d], position);
  const HeadCodes q(s, x, 0);
  const int64_t first = std::max<int64_t>(position + 1 - s.a.window, 0);
  std::vector<double> scores;
  std::vector<HeadCodes> values;
  for (int64_t slot = first; slot <= position; ++slot) {
    const int64_t at = ((b * s.all + slot) * s.a.kv_heads + h / shared) * d;
    const HeadCodes k(s, rotate_head(s, &s.k[at], slot), 1);
    values.emplace_back(s, std::vector<float>{s.v.begin() + at, s.v.begin() + at + d}, 2);
    double sum = 0.0;
    for (int64_t i = 0; i < d; ++i) sum += q.codes[i] * k.codes[i];
    scores.push_back(naive_score(s, sum * q.scale * k.scale, h, slot, position));
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double total = 0.0, largest = s.calibrated ? 1.0 : 0.0;
  std::vector<double> weights;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double e = std::exp(scores[i] - most);
    total += e;
    weights.push_back(s.calibrated ? e : e * values[i].scale);
    if (!s.calibrated) largest = std::max(largest, weights[i]);
  }
  const double scale = largest / 127.0 / total * (s.calibrated ? s.fixed[2] : 1.0f);
  CodedContext found = {std::vector<double>(d, 0.0), scale * 127.0};
  for (size_t i = 0; i < weights.size(); ++i) {
    const double code = std::nearbyint(weights[i] / (largest / 127.0));
    for (int64_t c = 0; c < d; ++c) found.context[c] += code * values[i].codes[c] * scale;
  }
  return found;
}

inline void check_attention(const Kernels& kernels, Pool& pool, Random& r) {
  Scene s = random_scene(r);
  if (s.past > 0) chunk(kernels, pool, s, 0, s.past);
  const auto out = chunk(kernels, pool, s, s.past, s.a.tokens);
  for (int64_t row = 0; row < s.a.batch * s.a.tokens; ++row) {
    const int64_t position = s.past + row % s.a.tokens;
    for (int64_t h = 0; h < s.a.heads; ++h) {
      const int64_t b = row / s.a.tokens;
      const auto coded = s.a.codes ? naive_codes(s, b, position, h) : CodedContext{{}, 0.0};
      const auto expected = s.a.codes ? coded.context : naive_attention(s, b, position, h);
      for (int64_t i = 0; i < s.a.head_dim; ++i) {
        const float found = out[(row * s.a.heads + h) * s.a.head_dim + i];
        const double allowed = 1e-4 + 2.0 * coded.code;  // two weights at a tie
        expect(std::fabs(found - expected[i]) < allowed, "attention", row, h, i);
      }
    }
  }
}

}  // namespace planish
