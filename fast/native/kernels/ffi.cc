// The kernels as XLA FFI calls: buffers checked, work shared among XLA's threads.
//
// Every buffer's type and size is compared with what the attributes say before it is read; what
// does not fit comes back as an error that names both.
#include <atomic>
#include <cstring>
#include <string>
#include <string_view>

#include "ffi_attention.h"
#include "ffi_buffers.h"
#include "ffi_experts.h"
#include "ffi_linears.h"
#include "ffi_route.h"
#include "kernels.h"
#include "parallel.h"
#include "sample.h"
#include "xla/ffi/api/ffi.h"

namespace planish {
namespace {

// The next token of each row, or -1 where the logits are not numbers: logits [rows, count], settings
// int32 [5] (temperature and top_p as the halves of a float64, then top_k), uniform int32 [rows, 2]
// (a float64 each) -> int32 [rows].
ffi::Error sample_tokens(std::string_view isa, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  ffi::AnyBuffer* x = in.next("logits", {ffi::DataType::F32}, -1);
  if (!x || x->dimensions().size() != 2 || x->element_count() < 1) {
    in.fail("logits must be [rows, count]");
    return in.error();
  }
  const int64_t rows = x->dimensions()[0], count = x->dimensions()[1];
  const int32_t* settings = in.data<int32_t>("settings", ffi::DataType::S32, 5);
  const int32_t* uniform = in.data<int32_t>("uniform", ffi::DataType::S32, 2 * rows);
  int32_t* token = in.result<int32_t>("token", ffi::DataType::S32, rows);
  in.end();
  if (!in.good()) return in.error();
  Sampling sampling = {};
  std::memcpy(&sampling.temperature, settings, 8);
  std::memcpy(&sampling.top_p, settings + 2, 8);
  sampling.top_k = settings[4];
  for (int64_t row = 0; row < rows; ++row) {
    const float* logits = static_cast<const float*>(x->untyped_data()) + row * count;
    token[row] = kernels->argmax(logits, count);
    if (token[row] < 0 || sampling.temperature == 0.0) continue;
    double drawn;
    std::memcpy(&drawn, uniform + 2 * row, 8);
    token[row] = sample(logits, count, token[row], sampling, drawn);
  }
  return ffi::Error::Success();
}

constexpr int64_t kReadUnit = int64_t{1} << 20;  // bytes

// All bytes of x, read once by all threads, and products in registers: uint8 [N] and int32 [1]
// rounds for each of 64 units -> int32 [1], which says nothing but that it was done.
ffi::Error limits(ffi::ThreadPool pool, std::string_view isa, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = choose(isa);
  if (!kernels) in.fail("no kernels for " + std::string(isa));
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::U8}, -1);
  const int32_t* rounds = in.data<int32_t>("rounds", ffi::DataType::S32, 1);
  int32_t* done = in.result<int32_t>("done", ffi::DataType::S32, 1);
  in.end();
  if (!in.good()) return in.error();
  const int64_t units = static_cast<int64_t>(x->element_count()) / kReadUnit;
  const uint8_t* bytes = static_cast<const uint8_t*>(x->untyped_data());
  std::atomic<int32_t> some{0};
  team().run(pool, units, [&](int64_t unit) {
    some += kernels->read_blocks(bytes + unit * kReadUnit, kReadUnit / kTileBytes);
  });
  if (rounds[0] > 0) {
    team().run(pool, 64, [&](int64_t) { some += kernels->multiply_registers(rounds[0]); });
  }
  done[0] = some.load();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_linears, linears,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .Attr<std::string_view>("activation")
                                  .Attr<std::string_view>("norm")
                                  .Attr<float>("eps")
                                  .Attr<bool>("gated")
                                  .Attr<bool>("norm_weight")
                                  .Attr<bool>("norm_bias")
                                  .Attr<bool>("residual")
                                  .Attr<int64_t>("sequences")
                                  .Attr<ffi::Span<const int64_t>>("linears")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_route, route,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .Attr<std::string_view>("norm")
                                  .Attr<float>("eps")
                                  .Attr<bool>("norm_weight")
                                  .Attr<bool>("norm_bias")
                                  .Attr<bool>("normalized")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_experts, experts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .Attr<std::string_view>("activation")
                                  .Attr<bool>("last")
                                  .Attr<bool>("residual")
                                  .Attr<int64_t>("sequences")
                                  .Attr<int64_t>("experts")
                                  .Attr<ffi::Span<const int64_t>>("linears")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .Attr<int64_t>("heads")
                                  .Attr<int64_t>("kv_heads")
                                  .Attr<int64_t>("head_dim")
                                  .Attr<int64_t>("rotary")
                                  .Attr<bool>("interleaved")
                                  .Attr<bool>("int8")
                                  .Attr<float>("divisor")
                                  .Attr<int64_t>("window")
                                  .Attr<ffi::Span<const float>>("slopes")
                                  .Attr<bool>("divided")
                                  .Attr<bool>("bfloat16")
                                  .Attr<float>("cap")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_sample, sample_tokens,
                              ffi::Ffi::Bind()
                                  .Attr<std::string_view>("isa")
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_limits, limits,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .RemainingArgs()
                                  .RemainingRets());

// Adds the kernels of one instruction set; 0 where there is no room. The first is the default,
// as long as no other is preferred.
extern "C" int planish_add_kernels(const Kernels* kernels) {
  for (int i = 0; i < kMostSets; ++i) {
    const Kernels* empty = nullptr;
    if (instruction_sets()[i].compare_exchange_strong(empty, kernels)) return 1;
  }
  return 0;
}

// Makes the kernels of that name the default, if they were added.
extern "C" void planish_prefer_kernels(const char* name) {
  const Kernels* first = instruction_sets()[0].load();
  for (int i = 1; i < kMostSets; ++i) {
    const Kernels* kernels = instruction_sets()[i].load();
    if (!kernels || std::string_view(name) != kernels->name) continue;
    instruction_sets()[i].store(first);
    instruction_sets()[0].store(kernels);
  }
}

}  // namespace planish
