// Routing of rows as one FFI call.
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

// The names of these attributes, in the order of the fields.
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

void read_choices(Reader& in, int64_t k, Router& router) {
  const int64_t rows = router.rows;
  router.norm = in.result<float>("norm of x", ffi::DataType::F32, rows * k);
  ffi::AnyBuffer* routing_weights = in.next_result("routing weights", ffi::DataType::F32);
  if (!in.good()) return;
  const int64_t count = static_cast<int64_t>(routing_weights->element_count());
  router.top_k = count / rows;
  if (router.top_k < 1 || router.top_k > router.experts || count != router.top_k * rows) {
    in.fail("routing weights are " + shape_text(*routing_weights) + ", expected [" +
            std::to_string(rows) + ", 1 to " + std::to_string(router.experts) + "]");
  }
  router.routing_weights = static_cast<float*>(routing_weights->untyped_data());
  router.expert_ids = in.result<int32_t>("expert ids", ffi::DataType::S32, rows * router.top_k);
}

// Buffers: x [rows, inputs], norm weight, norm bias, router [experts, inputs]. Results: norm(x),
// routing weights [rows, top_k], expert ids int32 [rows, top_k].
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
  read_choices(in, source.inputs, router);
  in.end();
  if (!in.good()) return in.error();
  route_rows(*kernels, pool, source, router);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_route, handler_of(route, route_attributes()),
                              bind_call(route_attributes()));

}  // namespace planish
