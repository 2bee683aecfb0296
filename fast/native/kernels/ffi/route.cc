// The experts of a few rows as one FFI call; of many rows XLA makes one matrix product.
#include "../work/route.h"

#include <string>
#include <string_view>

#include "attributes.h"
#include "buffers.h"
#include "weights.h"

namespace planish {

// The attributes of a call: fast/native/moe.py passes them by these names.
struct RouteCall {
  std::string_view isa, norm;
  float eps;
  bool norm_weight, norm_bias, normalized;
};

// Their names, in that order.
inline auto route_attributes() {
  return std::tuple(StructMember<std::string_view>("isa"), StructMember<std::string_view>("norm"),
                    StructMember<float>("eps"), StructMember<bool>("norm_weight"),
                    StructMember<bool>("norm_bias"), StructMember<bool>("normalized"));
}

namespace {

// The router's weight [experts, inputs].
void read_router(Reader& in, int64_t k, Router& router) {
  ffi::AnyBuffer* weight = in.good() ? in.next("router", {ffi::DataType::F32}, -1) : nullptr;
  if (!weight) return;
  if (weight->dimensions().size() != 2 || weight->dimensions()[1] != k) {
    in.fail("router is " + shape_text(*weight) + ", expected [experts, " + std::to_string(k) + "]");
    return;
  }
  router.experts = weight->dimensions()[0];
  router.weight = static_cast<const float*>(weight->untyped_data());
}

void read_choice(Reader& in, int64_t k, Router& router) {
  const int64_t rows = router.rows;
  router.norm = in.result<float>("norm of x", ffi::DataType::F32, rows * k);
  ffi::AnyBuffer* shares = in.next_result("shares", ffi::DataType::F32);
  if (!in.good()) return;
  const int64_t count = static_cast<int64_t>(shares->element_count());
  router.places = count / rows;
  if (router.places < 1 || router.places > router.experts || count != router.places * rows) {
    in.fail("shares are " + shape_text(*shares) + ", expected [" + std::to_string(rows) +
            ", 1 to " + std::to_string(router.experts) + "]");
  }
  router.shares = static_cast<float*>(shares->untyped_data());
  router.chosen = in.result<int32_t>("chosen", ffi::DataType::S32, rows * router.places);
}

// Buffers: x [rows, inputs], norm weight, norm bias, router [experts, inputs]. Results: norm(x),
// shares [rows, places], chosen int32 [rows, places].
ffi::Error route(ffi::ThreadPool pool, const RouteCall& call, ffi::RemainingArgs arguments,
                 ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, call.isa);
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  if (!in.good()) return in.error();
  if (x->dimensions().size() != 2 || x->element_count() < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [rows, inputs]");
    return in.error();
  }
  const Source source =
      read_source(in, *x, {call.norm, call.eps, call.norm_weight, call.norm_bias});
  Router router = {};
  router.rows = x->dimensions()[0];
  router.normalized = call.normalized;
  read_router(in, source.inputs, router);
  read_choice(in, source.inputs, router);
  in.end();
  if (!in.good()) return in.error();
  route_rows(*kernels, pool, source, router);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_route, handler_of(route, route_attributes()),
                              bind_call(route_attributes()));

}  // namespace planish
