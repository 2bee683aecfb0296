// Linears of a mixture of experts as one FFI call.
#include "../work/experts.h"

#include <string>
#include <string_view>

#include "attributes.h"
#include "buffers.h"
#include "weights.h"

namespace planish {

// The attributes of a call: fast/native/moe.py passes them by these names.
struct ExpertsCall {
  std::string_view isa, activation;
  bool last, residual;
  int64_t sequences, experts;
  ffi::Span<const int64_t> bits, outputs, group_sizes, zero_points, offsets, orders, code_sums,
      biases;

  LinearFields fields() const {
    return {bits, outputs, group_sizes, zero_points, offsets, orders, code_sums, biases};
  }
};

// The names of these attributes, in the order of the fields.
inline auto experts_attributes() {
  return std::tuple_cat(
      std::tuple(StructMember<std::string_view>("isa"),
                 StructMember<std::string_view>("activation"), StructMember<bool>("last"),
                 StructMember<bool>("residual"), StructMember<int64_t>("sequences"),
                 StructMember<int64_t>("experts")),
      linear_attributes());
}

namespace {

// Rows and the experts that the router chose for them.
struct RoutedRows {
  const float* x;
  const int32_t* expert_ids;  // [rows, top_k]
  int64_t rows, top_k, inputs;
};

void check_expert_ids(Reader& in, const RoutedRows& found, int64_t experts) {
  for (int64_t i = 0; i < found.rows * found.top_k && in.good(); ++i) {
    if (found.expert_ids[i] < 0 || found.expert_ids[i] >= experts) {
      in.fail("expert " + std::to_string(found.expert_ids[i]) + " was chosen of " +
              std::to_string(experts));
    }
  }
}

RoutedRows read_routed(Reader& in, const ExpertsCall& call) {
  RoutedRows found = {};
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  ffi::AnyBuffer* expert_ids =
      in.good() ? in.next("expert ids", {ffi::DataType::S32}, -1) : nullptr;
  if (!in.good()) return found;
  if (expert_ids->dimensions().size() != 2 || expert_ids->element_count() < 1) {
    in.fail("expert ids is " + shape_text(*expert_ids) + ", expected [rows, top_k]");
    return found;
  }
  found.rows = expert_ids->dimensions()[0];
  found.top_k = expert_ids->dimensions()[1];
  const int64_t wanted = call.last ? found.rows * found.top_k : found.rows;
  if (x->dimensions().size() != 2 || x->dimensions()[0] != wanted || x->dimensions()[1] < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [" + std::to_string(wanted) + ", inputs]");
    return found;
  }
  if (call.sequences < 1 || found.rows % call.sequences != 0) {
    in.fail("rows do not divide into sequences");
  }
  found.inputs = x->dimensions()[1];
  found.x = static_cast<const float*>(x->untyped_data());
  found.expert_ids = static_cast<const int32_t*>(expert_ids->untyped_data());
  check_expert_ids(in, found, call.experts);
  return found;
}

// The experts' weights: one linear's, or gate's and up's.
std::vector<Weight> read_stacks(Reader& in, const ExpertsCall& call, int64_t k,
                                Granularity granularity) {
  std::vector<Weight> stacks;
  const LinearFields fields = call.fields();
  for (size_t i = 0; i < fields.count() && in.good(); ++i) {
    stacks.push_back(read_weight(in, fields, i, k, call.experts));
    require_plain(in, stacks[i], granularity);
    if (stacks[i].code_sums) in.fail("inputs of experts have no zero points");
  }
  if (in.good() && stacks.size() == 2 &&
      (stacks[0].outputs != stacks[1].outputs || !same_groups(stacks[0], stacks[1]))) {
    in.fail("gate and up must have the same outputs and the same groups");
  }
  return stacks;
}

// Buffers: x, expert ids int32 [rows, top_k]; activation scales [experts] if they are static; for
// one linear, or for gate and up, the stacks' codes, scale, zero point, offset, permutation and
// bias; in a last call
// routing weights [rows, top_k] and perhaps a residual. Result: y.
ffi::Error experts(ffi::ThreadPool pool, const ExpertsCall& call, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  Reader in(arguments, results);
  const LinearFields fields = call.fields();
  const Kernels* kernels = read_kernels(in, call.isa);
  if (!fields.complete() || fields.count() > (call.last ? 1 : 2)) {
    in.fail("the linears' fields must be those of one linear, or of gate and up");
  }
  const RoutedRows routed = read_routed(in, call);
  const Granularity granularity = granularity_of(call.activation, in);
  if (!in.good()) return in.error();
  const int64_t pairs = routed.rows * routed.top_k;
  ExpertLinears work = {{}, granularity, nullptr, nullptr, nullptr};
  if (call.activation == "static") {
    work.given = in.data<float>("activation scale", ffi::DataType::F32, call.experts);
  }
  work.stacks = read_stacks(in, call, routed.inputs, granularity);
  const int64_t n = in.good() ? work.stacks[0].outputs : 0;
  const float* routing_weights =
      call.last ? in.data<float>("routing weights", ffi::DataType::F32, pairs) : nullptr;
  if (call.residual) {
    work.residual = in.data<float>("residual", ffi::DataType::F32, routed.rows * n);
  }
  work.y = in.result<float>("y", ffi::DataType::F32, (call.last ? routed.rows : pairs) * n);
  in.end();
  if (!in.good()) return in.error();
  const Choice choice = group_rows(routed.expert_ids, routing_weights, routed.rows, routed.top_k,
                                   call.sequences, call.experts);
  run_experts(*kernels, pool, choice, {routed.x, routed.inputs, call.last}, work);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_experts, handler_of(experts, experts_attributes()),
                              bind_call(experts_attributes()));

}  // namespace planish
