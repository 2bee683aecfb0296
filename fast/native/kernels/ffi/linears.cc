// Linears that read the same input as one FFI call.
#include <string>
#include <string_view>

#include "../work/linears.h"
#include "attributes.h"
#include "buffers.h"
#include "weights.h"

namespace planish {

// The attributes of a call: fast/native/linear.py passes them by these names.
struct LinearsCall {
  std::string_view isa, activation, norm;
  float eps;
  bool gated, norm_weight, norm_bias, zero_point, residual;
  int64_t sequences;
  ffi::Span<const int64_t> bits, outputs, group_sizes, zero_points, offsets, orders, code_sums,
      biases;

  LinearFields fields() const {
    return {bits, outputs, group_sizes, zero_points, offsets, orders, code_sums, biases};
  }
  NormFields norm_fields() const { return {norm, eps, norm_weight, norm_bias}; }
};

// The names of these attributes, in the order of the fields.
inline auto linears_attributes() {
  return std::tuple_cat(
      std::tuple(StructMember<std::string_view>("isa"),
                 StructMember<std::string_view>("activation"),
                 StructMember<std::string_view>("norm"), StructMember<float>("eps"),
                 StructMember<bool>("gated"), StructMember<bool>("norm_weight"),
                 StructMember<bool>("norm_bias"), StructMember<bool>("zero_point"),
                 StructMember<bool>("residual"), StructMember<int64_t>("sequences")),
      linear_attributes());
}

namespace {

// zero: the zero point of the inputs, or null.
void read_weights(Reader& in, const LinearFields& fields, int64_t k, Granularity granularity,
                  const int8_t* zero, Linears& linears) {
  for (size_t i = 0; i < fields.count() && in.good(); ++i) {
    linears.weights.push_back(read_weight(in, fields, i, k));
    const Weight& w = linears.weights[i];
    require_plain(in, w, granularity);
    if ((zero != nullptr) != (w.code_sums != nullptr) || (zero && w.bits != 8)) {
      in.fail("a zero point of inputs is for INT8 weights with sums of their codes");
    }
    if (!same_groups(linears.weights[i], linears.weights[0])) {
      in.fail("linears of one call must have the same groups");
    }
  }
}

// The residual, if there is one, and a result for each linear, or the one of gate and up.
void read_outputs(Reader& in, const LinearsCall& call, int64_t rows, Linears& linears) {
  if (!in.good()) return;
  const size_t count = linears.weights.size();
  const int64_t wide = linears.weights[0].outputs;
  const float* added =
      call.residual ? in.data<float>("residual", ffi::DataType::F32, rows * wide) : nullptr;
  if (call.residual && count != 1) in.fail("a residual belongs to one linear");
  if (call.gated && (count != 2 || linears.weights[1].outputs != wide)) {
    in.fail("gate and up are two linears of as many outputs");
  }
  for (size_t i = 0; i < (call.gated ? 1 : count) && in.good(); ++i) {
    const int64_t n = linears.weights[i].outputs;
    linears.outputs.push_back({in.result<float>("y", ffi::DataType::F32, rows * n), added, n, 0});
  }
}

// y_i = linear_i(norm(x)) + residual, or the one y = silu(linear_0(norm(x))) * linear_1(norm(x)).
// Buffers, in this order, those that the attributes announce: x, norm weight, norm bias, activation
// scale and its zero point; for each linear codes, scale, zero point, offset, permutation, code
// sums, bias; residual. Results: y.
ffi::Error linears(ffi::ThreadPool pool, const LinearsCall& call, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, call.isa);
  if (!call.fields().complete()) in.fail("the linears' fields are incomplete");
  ffi::AnyBuffer* x = read_rows(in);
  if (!in.good()) return in.error();
  const int64_t k = x->dimensions().back();
  const int64_t rows = static_cast<int64_t>(x->element_count()) / k;
  if (call.sequences < 1 || rows % call.sequences != 0) {
    in.fail("rows do not divide into sequences");
  }
  const Source source = read_source(in, *x, call.norm_fields());
  const Granularity granularity = granularity_of(call.activation, in);
  const float* given = nullptr;
  if (call.activation == "static") {
    given = in.data<float>("activation scale", ffi::DataType::F32, 1);
  }
  const int8_t* zero = nullptr;
  if (call.zero_point) zero = in.data<int8_t>("zero point of inputs", ffi::DataType::S8, 1);
  if (zero && !given) in.fail("only static inputs have a zero point");
  Linears all = {{}, {}, call.gated};
  read_weights(in, call.fields(), k, granularity, zero, all);
  read_outputs(in, call, rows, all);
  in.end();
  if (!in.good()) return in.error();
  const PackedRows packed = rows_for(all.weights, granularity, rows, k, zero);
  run_linears(*kernels, pool, all, source, packed, given, call.sequences);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_linears, handler_of(linears, linears_attributes()),
                              bind_call(linears_attributes()));

}  // namespace planish
