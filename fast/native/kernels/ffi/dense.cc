// A linear with float weights as one FFI call.
#include "../work/dense.h"

#include <string>
#include <string_view>

#include "attributes.h"
#include "buffers.h"
#include "weights.h"

namespace planish {

// The attributes of a call: fast/native/dense.py passes them by these names.
struct DenseCall {
  std::string_view isa, norm;
  float eps;
  bool norm_weight, norm_bias, bias, residual;
};

// The names of these attributes, in the order of the fields.
inline auto dense_attributes() {
  return std::tuple(StructMember<std::string_view>("isa"), StructMember<std::string_view>("norm"),
                    StructMember<float>("eps"), StructMember<bool>("norm_weight"),
                    StructMember<bool>("norm_bias"), StructMember<bool>("bias"),
                    StructMember<bool>("residual"));
}

namespace {

// Buffers, those that the attributes announce: x [.., K], norm weight, norm bias, weight [N, K],
// bias [N], residual [.., N]. Result: y [.., N].
ffi::Error dense(ffi::ThreadPool pool, const DenseCall& call, ffi::RemainingArgs arguments,
                 ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, call.isa);
  ffi::AnyBuffer* x = read_rows(in);
  if (!x) return in.error();
  const Source source =
      read_source(in, *x, {call.norm, call.eps, call.norm_weight, call.norm_bias});
  const int64_t k = source.inputs;
  Dense d = {};
  d.rows = static_cast<int64_t>(x->element_count()) / k;
  ffi::AnyBuffer* weight = in.good() ? in.next("weight", {ffi::DataType::F32}, -1) : nullptr;
  if (!weight) return in.error();
  if (weight->dimensions().size() != 2 || weight->dimensions()[1] != k) {
    in.fail("weight is " + shape_text(*weight) + ", expected [outputs, " + std::to_string(k) + "]");
    return in.error();
  }
  d.weight = static_cast<const float*>(weight->untyped_data());
  d.outputs = weight->dimensions()[0];
  if (call.bias) d.bias = in.data<float>("bias", ffi::DataType::F32, d.outputs);
  if (call.residual) {
    d.residual = in.data<float>("residual", ffi::DataType::F32, d.rows * d.outputs);
  }
  d.y = in.result<float>("y", ffi::DataType::F32, d.rows * d.outputs);
  in.end();
  if (!in.good()) return in.error();
  run_dense(*kernels, pool, source, d);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_dense, handler_of(dense, dense_attributes()),
                              bind_call(dense_attributes()));

}  // namespace planish
