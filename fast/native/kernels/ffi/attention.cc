// Attention as one FFI call, which writes the cache and reads it.
#include "../work/attention.h"

#include <string>
#include <string_view>

#include "attributes.h"
#include "buffers.h"

namespace planish {

// The attributes of a call: fast/native/attention.py passes them by these names.
struct AttentionCall {
  std::string_view isa;
  int64_t heads, kv_heads, head_dim, rotary;
  bool interleaved, int8, codes, fixed;  // fixed: calibrated scales
  bool paged;
  float divisor;
  int64_t window;  // 0: all slots
  int64_t ring;    // positions that the slots take in turn; 0: one each
  ffi::Span<const float> slopes;
  bool divided, bfloat16;
  float cap;
};

// The names of these attributes, in the order of the fields.
inline auto attention_attributes() {
  return std::tuple(
      StructMember<std::string_view>("isa"), StructMember<int64_t>("heads"),
      StructMember<int64_t>("kv_heads"), StructMember<int64_t>("head_dim"),
      StructMember<int64_t>("rotary"), StructMember<bool>("interleaved"),
      StructMember<bool>("int8"), StructMember<bool>("codes"), StructMember<bool>("fixed"),
      StructMember<bool>("paged"), StructMember<float>("divisor"), StructMember<int64_t>("window"),
      StructMember<int64_t>("ring"), StructMember<ffi::Span<const float>>("slopes"),
      StructMember<bool>("divided"), StructMember<bool>("bfloat16"), StructMember<float>("cap"));
}

namespace {

void check_call(Reader& in, const AttentionCall& c) {
  if (c.heads < 1 || c.kv_heads < 1 || c.heads % c.kv_heads != 0 || c.head_dim < 16 ||
      c.head_dim % 16 != 0 || c.head_dim > kMostHead || c.rotary < 0 || c.rotary > c.head_dim ||
      c.rotary % 2 != 0) {
    in.fail("heads must be a multiple of key-value heads, head_dim of 16 up to 256, rotary even");
  }
  if (!(c.divisor > 0.0f) || !(c.cap >= 0.0f) || c.window < 0) {
    in.fail("divisor, cap or window negative");
  }
  if (c.ring < 0 || (c.ring > 0 && c.paged)) in.fail("a ring is of positions, without pages");
  if ((c.codes && !c.int8) || (c.fixed && !c.codes)) {
    in.fail("codes are for an INT8 cache, and fixed scales for codes");
  }
  if (c.slopes.size() != 0 && static_cast<int64_t>(c.slopes.size()) != c.heads) {
    in.fail("slopes are " + std::to_string(c.slopes.size()) + ", expected one for each head");
  }
}

// The options, from the attributes alone.
Attention options_of(const AttentionCall& call) {
  Attention a = {};
  a.heads = call.heads;
  a.kv_heads = call.kv_heads;
  a.head_dim = call.head_dim;
  a.rotary = call.rotary;
  a.ring = call.ring;
  a.int8 = call.int8;
  a.codes = call.codes;
  a.interleaved = call.interleaved;
  a.divisor = call.divisor;
  a.slopes = call.slopes.size() > 0 ? call.slopes.begin() : nullptr;
  a.divided = call.divided;
  a.bfloat16 = call.bfloat16;
  a.cap = call.cap;
  return a;
}

// q, k, v and their positions.
void read_tokens(Reader& in, Attention& a) {
  ffi::AnyBuffer* q = in.next("q", {ffi::DataType::F32}, -1);
  if (!q || q->dimensions().size() != 3 || q->dimensions()[2] != a.heads * a.head_dim) {
    in.fail("q must be [B, T, heads * head_dim]");
    return;
  }
  a.batch = q->dimensions()[0];
  a.tokens = q->dimensions()[1];
  a.q = static_cast<const float*>(q->untyped_data());
  const int64_t count = a.batch * a.tokens;
  a.k = in.data<float>("k", ffi::DataType::F32, count * a.kv_heads * a.head_dim);
  a.v = in.data<float>("v", ffi::DataType::F32, count * a.kv_heads * a.head_dim);
  a.positions = in.data<int32_t>("positions", ffi::DataType::S32, count);
}

// The row of each token, and the pages of each row.
void read_pages(Reader& in, Attention& a) {
  a.rows = in.data<int32_t>("rows", ffi::DataType::S32, a.batch * a.tokens);
  ffi::AnyBuffer* table = in.next("table", {ffi::DataType::S32}, -1);
  if (!table || table->dimensions().size() != 2 || table->dimensions()[1] < 1) {
    in.fail("table must be [rows, pages of a row]");
    return;
  }
  a.table = static_cast<const int32_t*>(table->untyped_data());
  a.table_rows = table->dimensions()[0];
  a.row_pages = table->dimensions()[1];
}

// cos and sin, if heads are rotated; returns the number of positions in them.
int64_t read_tables(Reader& in, Attention& a) {
  if (a.rotary == 0) return 0;
  ffi::AnyBuffer* cos = in.next("cos", {ffi::DataType::F32}, -1);
  if (!cos) return 0;
  const int64_t count = static_cast<int64_t>(cos->element_count());
  a.cos = static_cast<const float*>(cos->untyped_data());
  a.sin = in.data<float>("sin", ffi::DataType::F32, count);
  return count / (a.rotary / 2);
}

// The cache, which is returned as results in the same memory; returns the address of the keys.
const void* read_cache(Reader& in, Attention& a, int64_t window) {
  const auto type = a.int8 ? ffi::DataType::S8 : ffi::DataType::F32;
  ffi::AnyBuffer* keys = in.next("keys", {type}, -1);
  const int64_t one_slot = a.kv_heads * a.head_dim,
                slot_size = a.table ? one_slot : a.batch * one_slot;
  const int64_t unit = slot_size * (a.table ? kPage : 16);
  if (!keys || unit < 1 || keys->element_count() % unit != 0) {
    in.fail(a.table ? "keys must be [pages, K, 8, D, 16]" : "keys must be [B, K, S / 16, D, 16]");
    return nullptr;
  }
  const int64_t size = static_cast<int64_t>(keys->element_count());
  a.slots = a.table ? kPage : size / slot_size;
  a.window = window > 0 && window < capacity(a) ? window : capacity(a);
  a.pages = size / unit;
  const int64_t scales = size / a.head_dim;
  in.data<void>("values", type, size);
  const bool stored_scales = a.int8 && !a.fixed;
  if (stored_scales) {
    in.data<float>("key scales", ffi::DataType::F32, scales);
    in.data<float>("value scales", ffi::DataType::F32, scales);
  }
  a.out =
      in.result<float>("context", ffi::DataType::F32, a.batch * a.tokens * a.heads * a.head_dim);
  a.keys = in.result<void>("keys", type, size);
  a.values = in.result<void>("values", type, size);
  if (stored_scales) {
    a.key_scales = in.result<float>("key scales", ffi::DataType::F32, scales);
    a.value_scales = in.result<float>("value scales", ffi::DataType::F32, scales);
  }
  return keys->untyped_data();
}

// Checks that a ring holds the windows of all tokens of a row, whose last overwrites the first slot
// that is free.
void check_ring(Reader& in, const Attention& a) {
  if (a.ring == 0 || !in.good()) return;
  if (a.slots % kPage != 0 || a.window + a.tokens - 1 > a.slots) {
    in.fail("a ring of " + std::to_string(a.slots) + " slots for a window of " +
            std::to_string(a.window) + " and " + std::to_string(a.tokens) +
            " tokens must be a multiple of 128 and hold both");
  }
}

// Checks that positions are within the cache and within the `angles` rotary positions.
void check_positions(Reader& in, const Attention& a, int64_t angles) {
  const int64_t slots = capacity(a);
  for (int64_t i = 0; i < a.batch * a.tokens && in.good(); ++i) {
    const int64_t position = a.positions[i];
    if (position < 0 || position >= slots || (a.rotary > 0 && position >= angles)) {
      in.fail("position " + std::to_string(position) + " is outside " + std::to_string(slots) +
              " slots");
    }
  }
}

// Checks that rows are in the table, and that there are the pages of their slots.
void check_pages(Reader& in, const Attention& a) {
  for (int64_t i = 0; i < a.batch * a.tokens && in.good(); ++i) {
    const int64_t row = a.rows[i];
    if (row < -1 || row >= a.table_rows) in.fail("row " + std::to_string(row) + " has no pages");
    for (int64_t p = 0; in.good() && row >= 0 && p <= a.positions[i] / kPage; ++p) {
      const int64_t page = a.table[row * a.row_pages + p];
      if (page < 0 || page >= a.pages) in.fail("there is no page " + std::to_string(page));
    }
  }
}

// Buffers: q, k, v, positions, rows and table (if paged), cos and sin (if rotary > 0), calibrated
// scales [3] (if fixed), keys, values (with their scales if int8 and not fixed), which are returned
// as results in the same memory. Results: context, keys, values (, scales).
ffi::Error attention(ffi::ThreadPool pool, const AttentionCall& call, ffi::RemainingArgs arguments,
                     ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, call.isa);
  check_call(in, call);
  if (!in.good()) return in.error();
  Attention a = options_of(call);
  read_tokens(in, a);
  if (!in.good()) return in.error();
  if (call.paged) read_pages(in, a);
  if (!in.good()) return in.error();
  const int64_t angles = read_tables(in, a);
  if (call.fixed) a.fixed = in.data<float>("scales", ffi::DataType::F32, 3);
  const void* keys = read_cache(in, a, call.window);
  in.end();
  check_ring(in, a);
  check_positions(in, a, angles);
  if (call.paged) check_pages(in, a);
  if (!in.good()) return in.error();
  if (keys != a.keys) {
    return ffi::Error::Internal(
        "planish: the cache was not donated: its results are in other memory");
  }
  run_attention(*kernels, pool, a);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_attention, handler_of(attention, attention_attributes()),
                              bind_call(attention_attributes()));

}  // namespace planish
