// The norm of rows as one FFI call.
#include "../work/norm.h"

#include <string>
#include <string_view>

#include "attributes.h"
#include "buffers.h"
#include "weights.h"

namespace planish {

// The attributes of a call: fast/native/norm.py passes them by these names.
struct NormCall {
  std::string_view isa, norm;
  float eps;
  bool norm_weight, norm_bias;
};

// The names of these attributes, in the order of the fields.
inline auto norm_attributes() {
  return std::tuple(StructMember<std::string_view>("isa"), StructMember<std::string_view>("norm"),
                    StructMember<float>("eps"), StructMember<bool>("norm_weight"),
                    StructMember<bool>("norm_bias"));
}

namespace {

// Buffers, those that the attributes announce: x [.., K], norm weight [K], norm bias [K]. Result: y
// [.., K].
ffi::Error norm(ffi::ThreadPool pool, const NormCall& call, ffi::RemainingArgs arguments,
                ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, call.isa);
  ffi::AnyBuffer* x = read_rows(in);
  if (!x) return in.error();
  const Source source =
      read_source(in, *x, {call.norm, call.eps, call.norm_weight, call.norm_bias});
  const int64_t count = static_cast<int64_t>(x->element_count());
  float* y = in.result<float>("y", ffi::DataType::F32, count);
  in.end();
  if (!in.good()) return in.error();
  run_norm(*kernels, pool, source, count / source.inputs, y);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_norm, handler_of(norm, norm_attributes()),
                              bind_call(norm_attributes()));

}  // namespace planish
