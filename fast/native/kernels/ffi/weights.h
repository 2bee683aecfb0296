// Decoding of the linears' weights from an FFI call.
#pragma once

#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "attributes.h"
#include "buffers.h"

namespace planish {

// The attributes that describe linears, one entry for each linear; named as the attributes are.
struct LinearFields {
  ffi::Span<const int64_t> bits, outputs, group_sizes, zero_points, offsets, orders, code_sums,
      biases;

  size_t count() const { return bits.size(); }
  bool complete() const {
    return count() > 0 && outputs.size() == count() && group_sizes.size() == count() &&
           zero_points.size() == count() && offsets.size() == count() && orders.size() == count() &&
           code_sums.size() == count() && biases.size() == count();
  }
};

// The names of a LinearFields' attributes, in the order in which a call's struct ends with them.
inline auto linear_attributes() {
  using Numbers = StructMember<ffi::Span<const int64_t>>;
  return std::tuple(Numbers("bits"), Numbers("outputs"), Numbers("group_sizes"),
                    Numbers("zero_points"), Numbers("offsets"), Numbers("orders"),
                    Numbers("code_sums"), Numbers("biases"));
}

// INT8 scales of rows: one for each output, or one for each of `experts` weights.
inline void read_row_scale(Reader& in, Weight& w, int64_t experts) {
  ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F32}, -1);
  if (!scale) return;
  const int64_t count = static_cast<int64_t>(scale->element_count());
  if (count != experts && count != experts * w.outputs) {
    in.fail("scale is " + shape_text(*scale) + ", expected " + std::to_string(experts) + " or " +
            std::to_string(experts * w.outputs));
  }
  w.row_scale = true;
  w.one_scale = count == experts;
  w.scale = scale->untyped_data();
}

// `count` halves or floats; sets `half`.
inline const void* read_either(Reader& in, const char* name, int64_t count, bool& half) {
  ffi::AnyBuffer* found = in.next(name, {ffi::DataType::F16, ffi::DataType::F32}, count);
  if (!found) return nullptr;
  half = found->element_type() == ffi::DataType::F16;
  return found->untyped_data();
}

// The order of K inputs, for each of `experts` weights.
inline void read_order(Reader& in, Weight& w, int64_t k, int64_t experts) {
  w.order = in.data<int32_t>("permutation", ffi::DataType::S32, experts * k);
  if (!w.order) return;
  for (int64_t i = 0; i < experts * k; ++i) {
    if (w.order[i] >= 0 && w.order[i] < k) continue;
    in.fail("permutation has " + std::to_string(w.order[i]) + " of " + std::to_string(k) +
            " inputs");
    return;
  }
}

// Scales, zero points or offsets, which attributes announce; `count` of each if they are of groups.
inline void read_scales(Reader& in, const LinearFields& fields, size_t i, Weight& w,
                        int64_t experts) {
  const int64_t count = experts * ceil_div(w.outputs, kTile) * w.groups * kTile;
  const bool grouped = w.bits == 8 && fields.group_sizes[i] > 0;
  if (w.bits == 8 && !grouped && !fields.offsets[i]) return read_row_scale(in, w, experts);
  w.scale = read_either(in, "scale", count, w.half_scale);
  if (w.bits == 4 && fields.zero_points[i]) {
    w.zero = in.data<uint8_t>("zero_point", ffi::DataType::U8, count);
  }
  if (fields.offsets[i]) w.offset = read_either(in, "offset", count, w.half_offset);
}

// The i-th linear's weight for K inputs; in a stack of `experts` weights, the first.
inline Weight read_weight(Reader& in, const LinearFields& fields, size_t i, int64_t k,
                          int64_t experts = 1) {
  Weight w = {};
  w.bits = static_cast<int>(fields.bits[i]);
  w.outputs = fields.outputs[i];
  if ((w.bits != 8 && w.bits != 4) || w.outputs < 1) {
    in.fail("a weight must have 8 or 4 bits and at least one output");
    return w;
  }
  const int64_t tiles = ceil_div(w.outputs, kTile), width = 32 / w.bits;
  const int64_t group = fields.group_sizes[i] < 1 ? k : fields.group_sizes[i];
  w.blocks = ceil_div(k, width);
  w.groups = ceil_div(k, group);
  w.group_blocks = ceil_div(group, width);
  const int64_t least = w.bits == 8 ? 16 : 32;
  if (w.groups > 1 && group % least != 0) {
    in.fail("a group must be a multiple of " + std::to_string(least) + " inputs");
  }
  const bool bytes = w.bits == 4 || fields.offsets[i];
  const auto type = bytes ? ffi::DataType::U8 : ffi::DataType::S8;
  w.codes = in.data<uint8_t>("codes", type, experts * tiles * w.blocks * kTileBytes);
  read_scales(in, fields, i, w, experts);
  if (fields.orders[i]) read_order(in, w, k, experts);
  if (fields.code_sums[i]) {
    w.code_sums = in.data<int32_t>("code sums", ffi::DataType::S32, experts * tiles * kTile);
  }
  if (fields.biases[i]) w.bias = in.data<float>("bias", ffi::DataType::F32, experts * w.outputs);
  return w;
}

// Quantized rows are for INT4 and for INT8 of whole rows, in order.
inline void require_plain(Reader& in, const Weight& w, Granularity granularity) {
  if (granularity == Granularity::kFloat) return;
  if (w.offset || w.order || (w.bits == 8 && !w.row_scale)) {
    in.fail("offsets, orders and INT8 in groups multiply float activations");
  }
}

// Whether two weights can read the same packed rows.
inline bool same_groups(const Weight& a, const Weight& b) {
  return a.groups == b.groups && a.group_blocks * b.bits == b.group_blocks * a.bits;
}

inline Granularity granularity_of(std::string_view name, Reader& in) {
  if (name == "float") return Granularity::kFloat;
  if (name == "per_token") return Granularity::kRow;
  if (name == "per_group") return Granularity::kGroup;
  if (name == "per_tensor" || name == "static") return Granularity::kGiven;
  in.fail("unknown activation " + std::string(name));
  return Granularity::kFloat;
}

inline Norm norm_of(std::string_view name, Reader& in) {
  if (name == "rms_norm") return Norm::kRms;
  if (name == "layer_norm") return Norm::kLayer;
  if (!name.empty()) in.fail("unknown norm " + std::string(name));
  return Norm::kNone;
}

// The attributes that describe the norm before a linear; named as the attributes are.
struct NormFields {
  std::string_view norm;
  float eps;
  bool norm_weight, norm_bias;
};

// x [.., K] float32.
inline ffi::AnyBuffer* read_rows(Reader& in) {
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  if (!x || (x->dimensions().size() >= 1 && x->element_count() >= 1)) return x;
  return in.fail("x is " + shape_text(*x) + ", expected [..., inputs]");
}

// Rows x [.., K] and their norm.
inline Source read_source(Reader& in, ffi::AnyBuffer& x, const NormFields& fields) {
  const int64_t k = x.dimensions().back();
  Source source = {};
  source.x = static_cast<const float*>(x.untyped_data());
  source.norm = norm_of(fields.norm, in);
  source.eps = fields.eps;
  source.inputs = k;
  if (fields.norm_weight) source.norm_weight = in.data<float>("norm weight", ffi::DataType::F32, k);
  if (fields.norm_bias) source.norm_bias = in.data<float>("norm bias", ffi::DataType::F32, k);
  return source;
}

}  // namespace planish
