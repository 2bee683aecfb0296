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
  ffi::Span<const int64_t> bits, outputs, group_sizes, zero_points, biases;

  LinearFields fields() const { return {bits, outputs, group_sizes, zero_points, biases}; }
};

// Their names, in that order.
inline auto experts_attributes() {
  return std::tuple(StructMember<std::string_view>("isa"),
                    StructMember<std::string_view>("activation"), StructMember<bool>("last"),
                    StructMember<bool>("residual"), StructMember<int64_t>("sequences"),
                    StructMember<int64_t>("experts"),
                    StructMember<ffi::Span<const int64_t>>("bits"),
                    StructMember<ffi::Span<const int64_t>>("outputs"),
                    StructMember<ffi::Span<const int64_t>>("group_sizes"),
                    StructMember<ffi::Span<const int64_t>>("zero_points"),
                    StructMember<ffi::Span<const int64_t>>("biases"));
}

namespace {

// Rows and the experts chosen for them.
struct ChosenRows {
  const float* x;
  const int32_t* chosen;  // [rows, places]
  int64_t rows, places, inputs;
};

void check_chosen(Reader& in, const ChosenRows& found, int64_t experts) {
  for (int64_t i = 0; i < found.rows * found.places && in.good(); ++i) {
    if (found.chosen[i] < 0 || found.chosen[i] >= experts) {
      in.fail("expert " + std::to_string(found.chosen[i]) + " was chosen of " +
              std::to_string(experts));
    }
  }
}

ChosenRows read_chosen(Reader& in, const ExpertsCall& call) {
  ChosenRows found = {};
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::F32}, -1);
  ffi::AnyBuffer* chosen = in.good() ? in.next("chosen", {ffi::DataType::S32}, -1) : nullptr;
  if (!in.good()) return found;
  if (chosen->dimensions().size() != 2 || chosen->element_count() < 1) {
    in.fail("chosen is " + shape_text(*chosen) + ", expected [rows, places]");
    return found;
  }
  found.rows = chosen->dimensions()[0];
  found.places = chosen->dimensions()[1];
  const int64_t wanted = call.last ? found.rows * found.places : found.rows;
  if (x->dimensions().size() != 2 || x->dimensions()[0] != wanted || x->dimensions()[1] < 1) {
    in.fail("x is " + shape_text(*x) + ", expected [" + std::to_string(wanted) + ", inputs]");
    return found;
  }
  if (call.sequences < 1 || found.rows % call.sequences != 0) {
    in.fail("rows do not divide into sequences");
  }
  found.inputs = x->dimensions()[1];
  found.x = static_cast<const float*>(x->untyped_data());
  found.chosen = static_cast<const int32_t*>(chosen->untyped_data());
  check_chosen(in, found, call.experts);
  return found;
}

// The experts' weights: one linear's, or gate's and up's.
std::vector<Weight> read_stacks(Reader& in, const ExpertsCall& call, int64_t k) {
  std::vector<Weight> stacks;
  const LinearFields fields = call.fields();
  for (size_t i = 0; i < fields.count() && in.good(); ++i) {
    stacks.push_back(read_weight(in, fields, i, k, call.experts));
  }
  if (in.good() && stacks.size() == 2 &&
      (stacks[0].outputs != stacks[1].outputs || !same_groups(stacks[0], stacks[1]))) {
    in.fail("gate and up must have the same outputs and the same groups");
  }
  return stacks;
}

// Buffers: x, chosen int32 [rows, places]; activation scales [experts] where they are static; for
// one linear, or gate and up, the stacks' codes, scale, zero point and bias; of a last call shares
// [rows, places] and perhaps a residual. Result: y.
ffi::Error experts(ffi::ThreadPool pool, const ExpertsCall& call, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  Reader in(arguments, results);
  const LinearFields fields = call.fields();
  const Kernels* kernels = read_kernels(in, call.isa);
  if (!fields.complete() || fields.count() > (call.last ? 1 : 2)) {
    in.fail("the linears' fields must be those of one linear, or of gate and up");
  }
  const ChosenRows chosen = read_chosen(in, call);
  const Granularity granularity = granularity_of(call.activation, in);
  if (!in.good()) return in.error();
  const int64_t pairs = chosen.rows * chosen.places;
  ExpertLinears work = {{}, granularity, nullptr, nullptr, nullptr};
  if (call.activation == "static") {
    work.given = in.data<float>("activation scale", ffi::DataType::F32, call.experts);
  }
  work.stacks = read_stacks(in, call, chosen.inputs);
  const int64_t n = in.good() ? work.stacks[0].outputs : 0;
  const float* shares = call.last ? in.data<float>("shares", ffi::DataType::F32, pairs) : nullptr;
  if (call.residual) {
    work.residual = in.data<float>("residual", ffi::DataType::F32, chosen.rows * n);
  }
  work.y = in.result<float>("y", ffi::DataType::F32, (call.last ? chosen.rows : pairs) * n);
  in.end();
  if (!in.good()) return in.error();
  const Choice choice =
      group_rows(chosen.chosen, shares, chosen.rows, chosen.places, call.sequences, call.experts);
  run_experts(*kernels, pool, choice, {chosen.x, chosen.inputs, call.last}, work);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_experts, handler_of(experts, experts_attributes()),
                              bind_call(experts_attributes()));

}  // namespace planish
