// The kernels of one instruction set against a naive program, without JAX: for sanitizers, and for
// processors that are only emulated. Compiled together with fast/kernels/kernels.cc.
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <queue>
#include <random>
#include <thread>
#include <vector>

#include "kernels.h"
#include "parallel.h"

extern "C" const planish::Kernels* planish_kernels();

namespace planish {
namespace {

int checks = 0, failures = 0;

void expect(bool good, const char* what, int64_t a, int64_t b, int64_t c) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s (%ld, %ld, %ld)\n", what, long(a), long(b), long(c));
}

// What XLA's pool is to the kernels.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { loop(); });
  }
  ~Pool() {
    { std::lock_guard<std::mutex> lock(mutex_); ended_ = true; }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int64_t num_threads() const { return static_cast<int64_t>(threads_.size()) + 1; }
  void Schedule(std::function<void()> task) {
    { std::lock_guard<std::mutex> lock(mutex_); tasks_.push(std::move(task)); }
    changed_.notify_one();
  }

 private:
  void loop() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return ended_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop();
      }
      task();
    }
  }
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<std::function<void()>> tasks_;
  bool ended_ = false;
};

using Random = std::mt19937;

int draw(Random& r, int low, int high) { return std::uniform_int_distribution<int>(low, high)(r); }

std::vector<float> floats(Random& r, int64_t count, float width = 1.0f) {
  std::normal_distribution<float> normal(0.0f, width);
  std::vector<float> x(count);
  for (float& value : x) value = normal(r);
  return x;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A linear with codes in plain order beside the kernels' own form of it.
struct Case {
  int bits;
  int64_t n, k, group, groups;
  std::vector<int> codes;    // [n, k]
  std::vector<int> zeros;    // [n, groups], of INT4
  std::vector<float> scale;  // [n, groups]
  std::vector<uint8_t> tiles, zero_tiles;
  std::vector<float> scale_tiles, bias;
  bool stored_zero;

  Weight weight() const {
    Weight w = {};
    w.bits = bits;
    w.codes = tiles.data();
    w.scale = bits == 8 ? scale.data() : scale_tiles.data();
    w.zero = stored_zero ? zero_tiles.data() : nullptr;
    w.bias = bias.data();
    w.outputs = n;
    w.blocks = ceil_div(k, 32 / bits);
    w.groups = groups;
    w.group_blocks = ceil_div(group, 32 / bits);
    return w;
  }
};

Case random_case(Random& r, int bits) {
  Case c;
  c.bits = bits;
  c.n = draw(r, 1, 70);
  c.k = draw(r, 1, 300);
  c.group = bits == 8 || draw(r, 0, 3) == 0 ? c.k : 32 << draw(r, 0, 2);
  c.groups = ceil_div(c.k, c.group);
  c.stored_zero = bits == 4 && draw(r, 0, 1) == 1;
  const int extreme = draw(r, 0, 6);
  const int low = bits == 8 ? -127 : 0, high = bits == 8 ? 127 : 15;
  for (int64_t i = 0; i < c.n * c.k; ++i) {
    c.codes.push_back(extreme == 0 ? low : extreme == 1 ? high : draw(r, low, high));
  }
  for (int64_t i = 0; i < c.n * c.groups; ++i) c.zeros.push_back(c.stored_zero ? draw(r, 0, 15) : 8);
  c.scale = floats(r, c.n * c.groups, 0.02f);  // negative ones too
  c.bias = floats(r, c.n);
  const int64_t tiles = ceil_div(c.n, 16), width = 32 / bits, blocks = ceil_div(c.k, width);
  c.tiles.assign(tiles * blocks * 64, 0);
  for (int64_t i = 0; i < c.n; ++i) {
    for (int64_t j = 0; j < c.k; ++j) {
      uint8_t& byte = c.tiles[((i / 16 * blocks + j / width) * 16 + i % 16) * 4 + j % 4];
      const int code = c.codes[i * c.k + j];
      byte |= static_cast<uint8_t>(bits == 8 ? code : code << (j % 8 / 4 * 4));
    }
  }
  c.scale_tiles.assign(tiles * c.groups * 16, 0.0f);
  c.zero_tiles.assign(tiles * c.groups * 16, 0);
  for (int64_t i = 0; i < c.n; ++i) {
    for (int64_t g = 0; g < c.groups; ++g) {
      const int64_t at = (i / 16 * c.groups + g) * 16 + i % 16;
      c.scale_tiles[at] = c.scale[i * c.groups + g];
      c.zero_tiles[at] = static_cast<uint8_t>(c.zeros[i * c.groups + g]);
    }
  }
  return c;
}

float scale_of(const float* x, int64_t count) {
  float most = 0.0f;
  for (int64_t i = 0; i < count; ++i) most = std::fmax(most, std::fabs(x[i]));
  return std::fmax(most, 1e-5f) / 127.0f;
}

// reference/linear.py for one output, in its order of operations.
float naive(const Case& c, Granularity granularity, float given, const float* x, int64_t i) {
  float y = 0.0f;
  double exact = 0.0;
  const float row = granularity == Granularity::kGiven ? given : scale_of(x, c.k);
  for (int64_t g = 0; g < c.groups; ++g) {
    const int64_t first = g * c.group, last = std::min(c.k, first + c.group);
    const bool own = granularity == Granularity::kGroup;
    const float a = own ? scale_of(x + first, last - first) : row;
    const float w = c.scale[i * c.groups + g];
    int64_t sum = 0;
    for (int64_t j = first; j < last; ++j) {
      const int code = c.codes[i * c.k + j] - (c.bits == 4 ? c.zeros[i * c.groups + g] : 0);
      const float ratio = std::nearbyint(x[j] / a);
      sum += static_cast<int64_t>(std::fmin(127.0f, std::fmax(-127.0f, ratio))) * code;
      exact += static_cast<double>(x[j]) * code * w;
    }
    const float total = static_cast<float>(sum);
    if (c.bits == 8) y = (total * a) * w;
    else if (own) y = y + (total * w) * a;
    else y = y + total * w;
  }
  if (granularity == Granularity::kFloat) return static_cast<float>(exact) + c.bias[i];
  if (c.bits == 4 && granularity != Granularity::kGroup) y = y * row;
  return y + c.bias[i];
}

Granularity random_granularity(Random& r, int bits) {
  const int which = draw(r, 0, 3);
  if (which == 0) return Granularity::kFloat;
  if (which == 1) return Granularity::kRow;
  return bits == 4 ? Granularity::kGroup : Granularity::kGiven;
}

void check_linear(const Kernels& kernels, Pool& pool, Random& r) {
  const Case c = random_case(r, draw(r, 0, 1) ? 8 : 4);
  const Granularity granularity = random_granularity(r, c.bits);
  const int64_t rows = draw(r, 1, 19);
  const std::vector<float> x = floats(r, rows * c.k);
  const float given = 0.031f;
  Rows prepared = {};
  prepared.granularity = granularity;
  prepared.rows = rows;
  prepared.steps = ceil_div(c.k, 8) * 2;
  prepared.groups = c.groups;
  prepared.group_inputs = c.group;
  prepared.scale_groups = granularity == Granularity::kGroup ? c.groups : 1;
  std::vector<int8_t> codes(rows * prepared.steps * 4);
  std::vector<float> scales(rows * prepared.scale_groups), wide(rows * prepared.steps * 4);
  std::vector<int32_t> sums(rows * c.groups);
  prepared.codes = codes.data();
  prepared.scales = scales.data();
  prepared.sums = sums.data();
  prepared.floats = wide.data();
  const Source source = {x.data(), Norm::kNone, nullptr, nullptr, 0.0f, c.k};
  std::vector<float> scratch(c.k + 32);
  for (int64_t row = 0; row < rows; ++row) {
    kernels.prepare_row(source, prepared, row, given, scratch.data());
  }
  std::vector<float> y(rows * c.n, NAN);
  const Weight w = c.weight();
  const Output out = {y.data(), nullptr, c.n, 0};
  team().run(pool, ceil_div(c.n, 16), [&](int64_t tile) {
    if (granularity != Granularity::kFloat) {
      kernels.integer_tiles(w, prepared, out, tile, 1);
      return;
    }
    std::vector<float> floats(kernels.float_scratch(prepared));
    kernels.float_tiles(w, prepared, out, tile, 1, floats.data());
  });
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < c.n; ++i) {
      const float expected = naive(c, granularity, given, x.data() + row * c.k, i);
      const float found = y[row * c.n + i];
      const bool exact = granularity != Granularity::kFloat;
      const bool good = exact ? found == expected : std::fabs(found - expected) < 1e-3f;
      expect(good, exact ? "integer linear" : "float linear", row, i, c.k);
    }
  }
}

void check_attention(const Kernels& kernels, Pool& pool, Random& r) {
  Attention a = {};
  a.batch = draw(r, 1, 2);
  a.kv_heads = draw(r, 1, 3);
  a.heads = a.kv_heads * draw(r, 1, 9);
  a.head_dim = 16 * draw(r, 1, 3);
  a.slots = 16 * draw(r, 1, 12);
  a.tokens = draw(r, 1, static_cast<int>(std::min<int64_t>(a.slots, 20)));
  a.int8 = draw(r, 0, 1) == 1;
  const int64_t d = a.head_dim, cells = a.batch * a.kv_heads * a.slots;
  const int64_t count = a.batch * a.tokens, past = draw(r, 0, int(a.slots - a.tokens));
  const int64_t all = past + a.tokens;
  std::vector<int8_t> key_codes(cells * d), value_codes(cells * d);
  std::vector<float> keys(cells * d), values(cells * d), key_scales(cells), value_scales(cells);
  a.keys = a.int8 ? static_cast<void*>(key_codes.data()) : keys.data();
  a.values = a.int8 ? static_cast<void*>(value_codes.data()) : values.data();
  a.key_scales = key_scales.data();
  a.value_scales = value_scales.data();
  std::vector<float> k = floats(r, a.batch * all * a.kv_heads * d), v = floats(r, k.size());
  std::vector<float> q = floats(r, a.batch * all * a.heads * d), scratch(d + 32);
  auto chunk = [&](int64_t first, int64_t tokens, std::vector<float>& out) {
    const int64_t wide = a.kv_heads * d, broad = a.heads * d;
    std::vector<float> kk, vv, qq;
    std::vector<int32_t> positions;
    for (int64_t b = 0; b < a.batch; ++b) {
      for (int64_t t = first; t < first + tokens; ++t) {
        const int64_t at = b * all + t;
        kk.insert(kk.end(), k.begin() + at * wide, k.begin() + (at + 1) * wide);
        vv.insert(vv.end(), v.begin() + at * wide, v.begin() + (at + 1) * wide);
        qq.insert(qq.end(), q.begin() + at * broad, q.begin() + (at + 1) * broad);
        positions.push_back(static_cast<int32_t>(t));
      }
    }
    Attention part = a;
    part.tokens = tokens;
    part.q = qq.data();
    part.k = kk.data();
    part.v = vv.data();
    part.positions = positions.data();
    out.assign(a.batch * tokens * broad, NAN);
    part.out = out.data();
    kernels.write_slots(part, 0, a.batch * tokens, scratch.data());
    const int64_t rows = tokens * (a.heads / a.kv_heads), tiles = ceil_div(rows, 8);
    team().run(pool, a.batch * a.kv_heads * tiles, [&](int64_t unit) {
      std::vector<float> memory(16 + 8 * d + kernels.attention_scratch(part));
      const int64_t start = unit % tiles * 8;
      const QueryTile t = {unit / tiles / a.kv_heads, unit / tiles % a.kv_heads, start,
                           std::min<int64_t>(8, rows - start), 0, first + tokens, memory.data(),
                           memory.data() + 8, memory.data() + 16};
      kernels.attend(part, t, memory.data() + 16 + 8 * d);
      kernels.combine(part, &t, 1);
    });
  };
  std::vector<float> out;
  if (past > 0) chunk(0, past, out);
  chunk(past, a.tokens, out);
  for (int64_t row = 0; row < count; ++row) {
    const int64_t b = row / a.tokens, position = past + row % a.tokens;
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t kv = h / (a.heads / a.kv_heads);
      std::vector<double> mixed(d, 0.0);
      double total = 0.0;
      for (int64_t s = 0; s <= position; ++s) {
        const int64_t at = ((b * all + s) * a.kv_heads + kv) * d;
        const float ks = scale_of(k.data() + at, d), vs = scale_of(v.data() + at, d);
        const auto grid = [&](float x, float scale) {
          return a.int8 ? std::nearbyint(x / scale) * scale : x;
        };
        double score = 0.0;
        for (int64_t i = 0; i < d; ++i) {
          score += q[((b * all + position) * a.heads + h) * d + i] * grid(k[at + i], ks);
        }
        const double e = std::exp(score / std::sqrt(double(d)));
        total += e;
        for (int64_t i = 0; i < d; ++i) mixed[i] += e * grid(v[at + i], vs);
      }
      for (int64_t i = 0; i < d; ++i) {
        const float found = out[(row * a.heads + h) * d + i];
        expect(std::fabs(found - mixed[i] / total) < 1e-4, "attention", row, h, i);
      }
    }
  }
}

void check_argmax(const Kernels& kernels, Random& r) {
  std::vector<float> x = floats(r, draw(r, 1, 100));
  const int64_t at = draw(r, 0, static_cast<int>(x.size()) - 1);
  x[at] = 9.0f;
  expect(kernels.argmax(x.data(), x.size()) == at, "argmax", at, x.size(), 0);
  x[x.size() / 2] = NAN;
  expect(kernels.argmax(x.data(), x.size()) == -1, "argmax of NaN", at, x.size(), 0);
}

}  // namespace
}  // namespace planish

int main(int argc, char** argv) {
  using namespace planish;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  const Kernels& kernels = *planish_kernels();
  Pool pool(3);
  Random random(1);
  for (int round = 0; round < rounds; ++round) {
    check_linear(kernels, pool, random);
    check_attention(kernels, pool, random);
    check_argmax(kernels, random);
  }
  std::thread other([&] {  // two callers at once: the second finds the team busy
    Random own(2);
    std::vector<float> y(1000);
    for (int i = 0; i < 50; ++i) {
      team().run(pool, 1000, [&](int64_t unit) { y[unit] = static_cast<float>(unit); });
    }
  });
  for (int i = 0; i < 50; ++i) check_argmax(kernels, random);
  std::vector<float> y(1000);
  for (int i = 0; i < 50; ++i) team().run(pool, 1000, [&](int64_t unit) { y[unit] = 1.0f; });
  other.join();
  std::printf("%s: %d checks, %d failures\n", kernels.name, checks, failures);
  return failures == 0 ? 0 : 1;
}
