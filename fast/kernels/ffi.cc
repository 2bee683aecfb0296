// The kernels as XLA FFI calls: buffers checked, work shared among XLA's threads.
//
// Every buffer's type and size is compared with what the attributes say before it is read; what
// does not fit comes back as an error that names both.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "sample.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace planish {
namespace {

constexpr int kMostSets = 8;

// The instruction sets at hand, the best first: libraries of their own, added when they are loaded.
std::atomic<const Kernels*>* instruction_sets() {
  static std::atomic<const Kernels*> sets[kMostSets];
  return sets;
}

// Memory of a thread that grows and is kept: no page faults from one call to the next.
template <class T>
T* scratch(int slot, int64_t count) {
  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[8];
  Buffer& buffer = buffers[slot];
  const size_t size = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
  if (buffer.size < size) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = std::aligned_alloc(64, size);
    if (!buffer.data) throw std::bad_alloc();
    buffer.size = size;
  }
  return static_cast<T*>(buffer.data);
}

std::string shape_text(ffi::AnyBuffer b) {
  std::string text = "[";
  for (int64_t d : b.dimensions()) text += (text.size() > 1 ? ", " : "") + std::to_string(d);
  return text + "]";
}

// Takes buffers one after another and remembers the first that does not fit.
class Reader {
 public:
  Reader(ffi::RemainingArgs arguments, ffi::RemainingRets results)
      : arguments_(arguments), results_(results) {}

  // A buffer of a type with `size` entries (any, if negative), or null after a failure.
  ffi::AnyBuffer* next(const char* name, std::initializer_list<ffi::DataType> types, int64_t size) {
    if (index_ >= arguments_.size()) return fail(std::string(name) + " is missing");
    auto found = arguments_.get<ffi::AnyBuffer>(index_++);
    if (!found.has_value()) return fail(std::string(name) + " cannot be read");
    kept_.push_back(std::make_unique<ffi::AnyBuffer>(*found));
    return check(name, *kept_.back(), types, size) ? kept_.back().get() : nullptr;
  }
  template <class T>
  const T* data(const char* name, ffi::DataType type, int64_t size) {
    ffi::AnyBuffer* buffer = next(name, {type}, size);
    return buffer ? static_cast<const T*>(buffer->untyped_data()) : nullptr;
  }
  template <class T>
  T* result(const char* name, ffi::DataType type, int64_t size) {
    if (result_ >= results_.size()) {
      fail(std::string(name) + " is missing");
      return nullptr;
    }
    auto found = results_.get<ffi::AnyBuffer>(result_++);
    if (!found.has_value() || !check(name, **found, {type}, size)) return nullptr;
    return static_cast<T*>((*found)->untyped_data());
  }
  ffi::AnyBuffer* fail(std::string message) {
    if (message_.empty()) message_ = std::move(message);
    return nullptr;
  }
  void end() {
    if (index_ != arguments_.size() || result_ != results_.size()) fail("too many buffers");
  }
  bool good() const { return message_.empty(); }
  ffi::Error error() const { return ffi::Error::InvalidArgument("planish: " + message_); }

 private:
  bool check(const char* name, ffi::AnyBuffer b, std::initializer_list<ffi::DataType> types,
             int64_t size) {
    bool fits = false;
    for (auto type : types) fits = fits || b.element_type() == type;
    if (!fits) fail(std::string(name) + " has a type that the kernel does not take");
    if (size >= 0 && static_cast<int64_t>(b.element_count()) != size) {
      fail(std::string(name) + " is " + shape_text(b) + ", expected " + std::to_string(size) +
           " entries");
    }
    return good();
  }

  ffi::RemainingArgs arguments_;
  ffi::RemainingRets results_;
  size_t index_ = 0, result_ = 0;
  std::vector<std::unique_ptr<ffi::AnyBuffer>> kept_;
  std::string message_;
};

const Kernels* choose(std::string_view name) {
  for (int i = 0; i < kMostSets; ++i) {
    const Kernels* kernels = instruction_sets()[i].load();
    if (kernels && (name.empty() || name == kernels->name)) return kernels;
  }
  return nullptr;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kLinearFields = 5;  // bits, outputs, group_size, has_zero, has_bias

struct Linears {
  std::vector<Weight> weights;
  std::vector<Output> outputs;
};

Weight read_weight(Reader& in, const int64_t* field, int64_t k) {
  Weight w = {};
  w.bits = static_cast<int>(field[0]);
  w.outputs = field[1];
  if ((w.bits != 8 && w.bits != 4) || w.outputs < 1) {
    in.fail("a weight must have 8 or 4 bits and at least one output");
    return w;
  }
  const int64_t tiles = ceil_div(w.outputs, kTile), width = 32 / w.bits;
  const int64_t group = w.bits == 8 || field[2] < 1 ? k : field[2];
  w.blocks = ceil_div(k, width);
  w.groups = ceil_div(k, group);
  w.group_blocks = ceil_div(group, width);
  if (w.groups > 1 && group % 32 != 0) in.fail("a group must be a multiple of 32 inputs");
  const auto code_type = w.bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  w.codes = in.data<uint8_t>("codes", code_type, tiles * w.blocks * kTileBytes);
  if (w.bits == 8) {
    ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F32}, -1);
    if (!scale) return w;
    const int64_t count = static_cast<int64_t>(scale->element_count());
    if (count != 1 && count != w.outputs) {
      in.fail("scale is " + shape_text(*scale) + ", expected 1 or " + std::to_string(w.outputs));
    }
    w.one_scale = count == 1;
    w.scale = scale->untyped_data();
  } else {
    ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F16, ffi::DataType::F32},
                                    tiles * w.groups * kTile);
    if (!scale) return w;
    w.half_scale = scale->element_type() == ffi::DataType::F16;
    w.scale = scale->untyped_data();
    if (field[3]) w.zero = in.data<uint8_t>("zero_point", ffi::DataType::U8, tiles * w.groups * kTile);
  }
  if (field[4]) w.bias = in.data<float>("bias", ffi::DataType::F32, w.outputs);
  return w;
}

// Where the prepared rows lie: in this thread's scratch memory, read by all.
Rows place_rows(const Weight& first, Granularity granularity, int64_t count, int64_t k) {
  Rows rows = {};
  rows.granularity = granularity;
  rows.rows = count;
  rows.steps = ceil_div(k, 8) * 2;
  rows.groups = first.groups;
  rows.group_inputs = first.groups == 1 ? k : first.group_blocks * 32 / first.bits;
  rows.scale_groups = granularity == Granularity::kGroup ? first.groups : 1;
  if (granularity == Granularity::kFloat) {
    rows.floats = scratch<float>(0, count * rows.steps * 4);
  } else {
    rows.codes = scratch<int8_t>(1, count * rows.steps * 4);
    rows.scales = scratch<float>(2, count * rows.scale_groups);
    rows.sums = scratch<int32_t>(3, count * rows.groups);
  }
  return rows;
}

constexpr int64_t kSerialInputs = 16384;  // a thread prepares so many by itself in a few us

void prepare(const Kernels& kernels, ffi::ThreadPool& pool, const Source& source, const Rows& rows,
             const float* given, int64_t sequences) {
  const int64_t k = source.inputs, each = rows.rows / sequences;
  std::vector<float> scales(given || rows.granularity != Granularity::kGiven ? 0 : rows.rows);
  auto shared = [&](int64_t units, auto body) {
    if (rows.rows * k <= kSerialInputs) {
      for (int64_t unit = 0; unit < units; ++unit) body(unit);
    } else {
      team().run(pool, units, body);
    }
  };
  if (!scales.empty()) {  // per_tensor: the largest of each sequence first
    shared(rows.rows, [&](int64_t row) {
      scales[row] = kernels.row_absmax(source, row, scratch<float>(4, k + 32));
    });
    for (int64_t s = 0; s < sequences; ++s) {
      float largest = 0.0f;
      for (int64_t r = s * each; r < (s + 1) * each; ++r) {
        if (!(scales[r] <= largest)) largest = scales[r];  // NaN wins
      }
      const float scale = (largest < 1e-5f ? 1e-5f : largest) / 127.0f;
      for (int64_t r = s * each; r < (s + 1) * each; ++r) scales[r] = scale;
    }
  }
  const int64_t tiles = ceil_div(rows.rows, kRowTile);
  shared(tiles, [&](int64_t tile) {
    const int64_t end = tile * kRowTile + kRowTile;
    for (int64_t row = tile * kRowTile; row < end && row < rows.rows; ++row) {
      const float scale = !scales.empty() ? scales[row] : given ? given[0] : 0.0f;
      kernels.prepare_row(source, rows, row, scale, scratch<float>(4, k + 32));
    }
  });
}

// Weights of one unit: a stream that is read to its end, long enough to be worth its beginning.
constexpr int64_t kLeastBytes = 32 * 1024, kMostBytes = 256 * 1024;

// Tiles of one linear, or of gate and up together.
struct Unit {
  size_t linear;
  int64_t tile, count;
};

std::vector<Unit> units_of(const Linears& linears, const Rows& rows, bool gated, int64_t threads) {
  int64_t bytes = 0;
  for (const Weight& w : linears.weights) bytes += ceil_div(w.outputs, kTile) * w.blocks * kTileBytes;
  const int64_t share = bytes / (2 * threads) / (gated ? 2 : 1);
  const int64_t wanted = share < kLeastBytes ? kLeastBytes : share < kMostBytes ? share : kMostBytes;
  const int64_t step = rows.granularity == Granularity::kFloat ? 4 : 2;  // multiplied together
  std::vector<Unit> units;
  for (size_t i = 0; i < (gated ? 1 : linears.weights.size()); ++i) {
    const Weight& w = linears.weights[i];
    const int64_t tiles = ceil_div(w.outputs, kTile), tile_bytes = w.blocks * kTileBytes;
    int64_t many = rows.rows > kRowTile ? step : wanted / tile_bytes / step * step;
    if (many < step) many = step;
    for (int64_t tile = 0; tile < tiles; tile += many) {
      units.push_back({i, tile, tiles - tile < many ? tiles - tile : many});
    }
  }
  return units;
}

void multiply(const Kernels& kernels, ffi::ThreadPool& pool, const Linears& linears,
              const Rows& rows, bool gated) {
  const bool floats = rows.granularity == Granularity::kFloat;
  const int64_t memory = floats ? kernels.float_scratch(rows) : 0;
  auto compute = [&](const Weight& w, const Output& out, const Unit& unit) {
    if (floats) {
      kernels.float_tiles(w, rows, out, unit.tile, unit.count, scratch<float>(5, memory));
    } else {
      kernels.integer_tiles(w, rows, out, unit.tile, unit.count);
    }
  };
  const std::vector<Unit> units = units_of(linears, rows, gated, pool.num_threads());
  team().run(pool, static_cast<int64_t>(units.size()), [&](int64_t i) {
    const Unit& unit = units[i];
    const Weight& w = linears.weights[unit.linear];
    const Output& out = linears.outputs[unit.linear];
    if (!gated) {
      compute(w, out, unit);
      return;
    }
    const int64_t first = unit.tile * kTile, wide = unit.count * kTile;
    const int64_t count = w.outputs - first < wide ? w.outputs - first : wide;
    float* both = scratch<float>(6, 2 * rows.rows * wide);
    float* up = both + rows.rows * wide;
    compute(w, {both, nullptr, wide, first}, unit);
    compute(linears.weights[1], {up, nullptr, wide, first}, unit);
    kernels.gate(both, up, wide, out.y + first, out.stride, rows.rows, count);
  });
}

Granularity granularity_of(std::string_view name, Reader& in) {
  if (name == "float") return Granularity::kFloat;
  if (name == "per_token") return Granularity::kRow;
  if (name == "per_group") return Granularity::kGroup;
  if (name == "per_tensor" || name == "static") return Granularity::kGiven;
  in.fail("unknown activation " + std::string(name));
  return Granularity::kFloat;
}

Norm norm_of(std::string_view name, Reader& in) {
  if (name == "rms_norm") return Norm::kRms;
  if (name == "layer_norm") return Norm::kLayer;
  if (!name.empty()) in.fail("unknown norm " + std::string(name));
  return Norm::kNone;
}

// y_i = linear_i(norm(x)) + residual, or the one y = silu(linear_0(norm(x))) * linear_1(norm(x)).
// Buffers, in this order and where the attributes say that they are there: x, norm weight, norm
// bias, activation scale; for each linear codes, scale, zero point, bias; residual. Results: y.
ffi::Error linears(ffi::ThreadPool pool, std::string_view isa, std::string_view activation,
                   std::string_view norm, float eps, bool gated, bool norm_weight, bool norm_bias,
                   bool residual, int64_t sequences, ffi::Span<const int64_t> fields,
                   ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  const int64_t count = static_cast<int64_t>(fields.size()) / kLinearFields;
  if (count < 1 || static_cast<int64_t>(fields.size()) != count * kLinearFields) {
    in.fail("the linears' fields are incomplete");
  }
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  if (!in.good()) return in.error();
  if (x->dimensions().size() < 1 || x->dimensions().back() < 1 || x->element_count() < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [..., inputs]");
    return in.error();
  }
  const int64_t k = x->dimensions().back();
  const int64_t rows = static_cast<int64_t>(x->element_count()) / k;
  if (sequences < 1 || rows % sequences != 0) in.fail("rows do not divide into sequences");
  Source source = {static_cast<const float*>(x->untyped_data()), norm_of(norm, in), nullptr,
                   nullptr, eps, k};
  const Granularity granularity = granularity_of(activation, in);
  const float* given = nullptr;
  if (norm_weight) source.norm_weight = in.data<float>("norm weight", ffi::DataType::F32, k);
  if (norm_bias) source.norm_bias = in.data<float>("norm bias", ffi::DataType::F32, k);
  if (activation == "static") given = in.data<float>("activation scale", ffi::DataType::F32, 1);
  Linears all;
  for (int64_t i = 0; i < count && in.good(); ++i) {
    all.weights.push_back(read_weight(in, fields.begin() + i * kLinearFields, k));
    if (all.weights[i].groups != all.weights[0].groups ||
        all.weights[i].group_blocks * all.weights[0].bits !=
            all.weights[0].group_blocks * all.weights[i].bits) {
      in.fail("linears of one call must have the same groups");
    }
  }
  const int64_t wide = in.good() ? all.weights[0].outputs : 0;
  const float* added = residual && in.good()
                           ? in.data<float>("residual", ffi::DataType::F32, rows * wide)
                           : nullptr;
  if (residual && count != 1) in.fail("a residual belongs to one linear");
  if (gated && (count != 2 || (in.good() && all.weights[1].outputs != wide))) {
    in.fail("gate and up are two linears of as many outputs");
  }
  for (int64_t i = 0; i < (gated ? 1 : count) && in.good(); ++i) {
    const int64_t n = all.weights[i].outputs;
    all.outputs.push_back({in.result<float>("y", ffi::DataType::F32, rows * n), added, n, 0});
  }
  in.end();
  if (!in.good()) return in.error();
  const Rows prepared = place_rows(all.weights[0], granularity, rows, k);
  prepare(*kernels, pool, source, prepared, given, sequences);
  multiply(*kernels, pool, all, prepared, gated);
  return ffi::Error::Success();
}

constexpr int64_t kSegment = 256;  // slots that one unit of decoding reads

// Query rows of every key-value head, 8 at a time, each over the slots that its last row may read;
// one token at a time also splits the slots.
void attend_all(const Kernels& kernels, ffi::ThreadPool& pool, const Attention& a) {
  const int64_t rows = a.tokens * (a.heads / a.kv_heads), shared = a.heads / a.kv_heads;
  const int64_t d = a.head_dim, tiles = ceil_div(rows, kRowTile);
  const int64_t segments = a.tokens == 1 ? ceil_div(a.slots, kSegment) : 1;
  const int64_t groups = a.batch * a.kv_heads * tiles;
  const int64_t each = kRowTile * (d + 2);
  float* memory = segments > 1 ? scratch<float>(6, groups * segments * each) : nullptr;
  auto part = [&](int64_t group, int64_t segment, float* place) {
    QueryTile t = {};
    t.batch = group / (a.kv_heads * tiles);
    t.head = group / tiles % a.kv_heads;
    t.first = group % tiles * kRowTile;
    t.count = rows - t.first < kRowTile ? rows - t.first : kRowTile;
    t.largest = place;
    t.sum = place + kRowTile;
    t.mixed = place + 2 * kRowTile;
    int64_t end = 0;
    for (int64_t r = t.first; r < t.first + t.count; ++r) {
      const int64_t seen = a.positions[t.batch * a.tokens + r / shared] + 1;
      if (seen > end) end = seen;
    }
    t.begin = segment * kSegment;
    t.end = segments > 1 && end > t.begin + kSegment ? t.begin + kSegment : end;
    return t;
  };
  if (segments == 1) {
    team().run(pool, groups, [&](int64_t group) {
      float* place = scratch<float>(7, each + kernels.attention_scratch(a));
      const QueryTile t = part(groups - 1 - group, 0, place);  // the longest first
      kernels.attend(a, t, place + each);
      kernels.combine(a, &t, 1);
    });
    return;
  }
  team().run(pool, groups * segments, [&](int64_t unit) {
    const QueryTile t = part(unit / segments, unit % segments, memory + unit * each);
    if (t.begin < t.end) kernels.attend(a, t, scratch<float>(7, kernels.attention_scratch(a)));
  });
  std::vector<QueryTile> parts;
  for (int64_t group = 0; group < groups; ++group) {
    parts.clear();
    for (int64_t s = 0; s < segments; ++s) {
      const QueryTile t = part(group, s, memory + (group * segments + s) * each);
      if (t.begin < t.end) parts.push_back(t);
    }
    kernels.combine(a, parts.data(), static_cast<int64_t>(parts.size()));
  }
}

// Buffers: q, k, v, positions, cos and sin (if rotary > 0), keys, values (with their scales if
// int8), which come back as results in the same memory. Results: mixed, keys, values (, scales).
ffi::Error attention(ffi::ThreadPool pool, std::string_view isa, int64_t heads, int64_t kv_heads,
                     int64_t head_dim, int64_t rotary, bool int8, ffi::RemainingArgs arguments,
                     ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 16 || head_dim % 16 != 0 ||
      rotary < 0 || rotary > head_dim || rotary % 2 != 0) {
    in.fail("heads must be a multiple of key-value heads, head_dim of 16, rotary even");
    return in.error();
  }
  Attention a = {};
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.head_dim = head_dim;
  a.rotary = rotary;
  a.int8 = int8;
  ffi::AnyBuffer* q = in.next("q", {ffi::DataType::F32}, -1);
  if (!q || q->dimensions().size() != 3 || q->dimensions()[2] != heads * head_dim) {
    in.fail("q must be [B, T, heads * head_dim]");
    return in.error();
  }
  a.batch = q->dimensions()[0];
  a.tokens = q->dimensions()[1];
  a.q = static_cast<const float*>(q->untyped_data());
  const int64_t count = a.batch * a.tokens;
  a.k = in.data<float>("k", ffi::DataType::F32, count * kv_heads * head_dim);
  a.v = in.data<float>("v", ffi::DataType::F32, count * kv_heads * head_dim);
  a.positions = in.data<int32_t>("positions", ffi::DataType::S32, count);
  int64_t table = 0;
  if (rotary > 0) {
    ffi::AnyBuffer* cos = in.next("cos", {ffi::DataType::F32}, -1);
    if (!cos) return in.error();
    table = static_cast<int64_t>(cos->element_count()) / (rotary / 2);
    a.cos = static_cast<const float*>(cos->untyped_data());
    a.sin = in.data<float>("sin", ffi::DataType::F32, static_cast<int64_t>(cos->element_count()));
  }
  const auto type = int8 ? ffi::DataType::S8 : ffi::DataType::F32;
  ffi::AnyBuffer* keys = in.next("keys", {type}, -1);
  const int64_t slot_size = a.batch * kv_heads * head_dim;
  if (!keys || slot_size < 1 || keys->element_count() % (slot_size * 16) != 0) {
    in.fail("keys must be [B, K, S / 16, D, 16]");
    return in.error();
  }
  const int64_t size = static_cast<int64_t>(keys->element_count());
  a.slots = size / slot_size;
  const int64_t scales = a.batch * kv_heads * a.slots;
  in.data<void>("values", type, size);
  if (int8) {
    in.data<float>("key scales", ffi::DataType::F32, scales);
    in.data<float>("value scales", ffi::DataType::F32, scales);
  }
  a.out = in.result<float>("mixed", ffi::DataType::F32, count * heads * head_dim);
  a.keys = in.result<void>("keys", type, size);
  a.values = in.result<void>("values", type, size);
  if (int8) {
    a.key_scales = in.result<float>("key scales", ffi::DataType::F32, scales);
    a.value_scales = in.result<float>("value scales", ffi::DataType::F32, scales);
  }
  in.end();
  if (!in.good()) return in.error();
  for (int64_t i = 0; i < count; ++i) {
    if (a.positions[i] < 0 || a.positions[i] >= a.slots || (rotary > 0 && a.positions[i] >= table)) {
      return ffi::Error::InvalidArgument("planish: position " + std::to_string(a.positions[i]) +
                                         " lies outside of " + std::to_string(a.slots) + " slots");
    }
  }
  if (keys->untyped_data() != a.keys) {
    return ffi::Error::Internal("planish: the cache was not handed on in place");
  }
  auto write = [&](int64_t unit) {  // 16 tokens fill one tile of keys
    const int64_t first = unit * kTile, last = first + kTile < count ? first + kTile : count;
    kernels->write_slots(a, first, last, scratch<float>(4, head_dim + 16));
  };
  const int64_t units = ceil_div(count, kTile);
  if (count * kv_heads * head_dim <= kSerialInputs) {
    for (int64_t unit = 0; unit < units; ++unit) write(unit);
  } else {
    team().run(pool, units, write);
  }
  attend_all(*kernels, pool, a);
  return ffi::Error::Success();
}

// The next token of each row, or -1 where the logits are not numbers: logits [rows, count], settings
// int32 [5] (temperature and top_p as the halves of a float64, then top_k), uniform int32 [rows, 2]
// (a float64 each) -> int32 [rows].
ffi::Error sample_tokens(std::string_view isa, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  ffi::AnyBuffer* x = in.next("logits", {ffi::DataType::F32}, -1);
  if (!x || x->dimensions().size() != 2 || x->element_count() < 1) {
    in.fail("logits must be [rows, count]");
    return in.error();
  }
  const int64_t rows = x->dimensions()[0], count = x->dimensions()[1];
  const int32_t* settings = in.data<int32_t>("settings", ffi::DataType::S32, 5);
  const int32_t* uniform = in.data<int32_t>("uniform", ffi::DataType::S32, 2 * rows);
  int32_t* token = in.result<int32_t>("token", ffi::DataType::S32, rows);
  in.end();
  if (!in.good()) return in.error();
  Sampling sampling = {};
  std::memcpy(&sampling.temperature, settings, 8);
  std::memcpy(&sampling.top_p, settings + 2, 8);
  sampling.top_k = settings[4];
  for (int64_t row = 0; row < rows; ++row) {
    const float* logits = static_cast<const float*>(x->untyped_data()) + row * count;
    token[row] = kernels->argmax(logits, count);
    if (token[row] < 0 || sampling.temperature == 0.0) continue;
    double drawn;
    std::memcpy(&drawn, uniform + 2 * row, 8);
    token[row] = sample(logits, count, token[row], sampling, drawn);
  }
  return ffi::Error::Success();
}

constexpr int64_t kReadUnit = int64_t{1} << 20;  // bytes

// All bytes of x, read once by all threads, and products in registers: uint8 [N] and int32 [1]
// rounds for each of 64 units -> int32 [1], which says nothing but that it was done.
ffi::Error limits(ffi::ThreadPool pool, std::string_view isa, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::U8}, -1);
  const int32_t* rounds = in.data<int32_t>("rounds", ffi::DataType::S32, 1);
  int32_t* done = in.result<int32_t>("done", ffi::DataType::S32, 1);
  in.end();
  if (!in.good()) return in.error();
  const int64_t units = static_cast<int64_t>(x->element_count()) / kReadUnit;
  const uint8_t* bytes = static_cast<const uint8_t*>(x->untyped_data());
  std::atomic<int32_t> some{0};
  team().run(pool, units, [&](int64_t unit) {
    some += kernels->read_blocks(bytes + unit * kReadUnit, kReadUnit / kTileBytes);
  });
  if (rounds[0] > 0) {
    team().run(pool, 64, [&](int64_t) { some += kernels->multiply_registers(rounds[0]); });
  }
  done[0] = some.load();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_linears, linears,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .Attr<std::string_view>("activation")
                                  .Attr<std::string_view>("norm")
                                  .Attr<float>("eps")
                                  .Attr<bool>("gated")
                                  .Attr<bool>("norm_weight")
                                  .Attr<bool>("norm_bias")
                                  .Attr<bool>("residual")
                                  .Attr<int64_t>("sequences")
                                  .Attr<ffi::Span<const int64_t>>("linears")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .Attr<int64_t>("heads")
                                  .Attr<int64_t>("kv_heads")
                                  .Attr<int64_t>("head_dim")
                                  .Attr<int64_t>("rotary")
                                  .Attr<bool>("int8")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_sample, sample_tokens,
                              ffi::Ffi::Bind()
                                  .Attr<std::string_view>("isa")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_limits, limits,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .RemainingArgs()
                                  .RemainingRets());

// Adds the kernels of one instruction set; 0 where there is no room. The first is the default.
extern "C" int planish_add_kernels(const Kernels* kernels) {
  for (int i = 0; i < kMostSets; ++i) {
    const Kernels* empty = nullptr;
    if (instruction_sets()[i].compare_exchange_strong(empty, kernels)) return 1;
  }
  return 0;
}

}  // namespace planish
