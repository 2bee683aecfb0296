// Decoding of the linears' weights from an FFI call.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "buffers.h"

namespace planish {

// The attributes that describe linears, one entry for each linear; named as the attributes are.
struct LinearFields {
  ffi::Span<const int64_t> bits, outputs, group_sizes, zero_points, biases;

  size_t count() const { return bits.size(); }
  bool complete() const {
    return count() > 0 && outputs.size() == count() && group_sizes.size() == count() &&
           zero_points.size() == count() && biases.size() == count();
  }
};

// INT8 scales: one for each output, or one for each of `experts` weights.
inline void read_int8_scale(Reader& in, Weight& w, int64_t experts) {
  ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F32}, -1);
  if (!scale) return;
  const int64_t count = static_cast<int64_t>(scale->element_count());
  if (count != experts && count != experts * w.outputs) {
    in.fail("scale is " + shape_text(*scale) + ", expected " + std::to_string(experts) + " or " +
            std::to_string(experts * w.outputs));
  }
  w.one_scale = count == experts;
  w.scale = scale->untyped_data();
}

// INT4 scales, and zero points if they are stored; `count` of each.
inline void read_int4_scale(Reader& in, Weight& w, bool zero_point, int64_t count) {
  ffi::AnyBuffer* scale = in.next("scale", {ffi::DataType::F16, ffi::DataType::F32}, count);
  if (!scale) return;
  w.half_scale = scale->element_type() == ffi::DataType::F16;
  w.scale = scale->untyped_data();
  if (zero_point) w.zero = in.data<uint8_t>("zero_point", ffi::DataType::U8, count);
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
  const int64_t group = w.bits == 8 || fields.group_sizes[i] < 1 ? k : fields.group_sizes[i];
  w.blocks = ceil_div(k, width);
  w.groups = ceil_div(k, group);
  w.group_blocks = ceil_div(group, width);
  if (w.groups > 1 && group % 32 != 0) in.fail("a group must be a multiple of 32 inputs");
  const auto type = w.bits == 8 ? ffi::DataType::S8 : ffi::DataType::U8;
  w.codes = in.data<uint8_t>("codes", type, experts * tiles * w.blocks * kTileBytes);
  if (w.bits == 8) read_int8_scale(in, w, experts);
  else read_int4_scale(in, w, fields.zero_points[i], experts * tiles * w.groups * kTile);
  if (fields.biases[i]) w.bias = in.data<float>("bias", ffi::DataType::F32, experts * w.outputs);
  return w;
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
