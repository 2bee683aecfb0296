// Peak rates of this machine as one FFI call, for benchmarks.
#include <atomic>
#include <string_view>

#include "../work/team.h"
#include "buffers.h"

namespace planish {
namespace {

constexpr int64_t kReadUnit = int64_t{1} << 20;  // bytes

// Reads all bytes of x once with all threads, then multiplies in registers, rounds[0] rounds in
// each of 64 units, and without matrix tiles rounds[1]. Buffers: x uint8 [N], rounds int32 [2].
// Result: int32 [1], of no meaning.
ffi::Error probe(ffi::ThreadPool pool, std::string_view isa, ffi::RemainingArgs arguments,
                 ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, isa);
  ffi::AnyBuffer* x = in.next("x", {ffi::DataType::U8}, -1);
  const int32_t* rounds = in.data<int32_t>("rounds", ffi::DataType::S32, 2);
  int32_t* done = in.result<int32_t>("done", ffi::DataType::S32, 1);
  in.end();
  if (!in.good()) return in.error();
  const int64_t units = static_cast<int64_t>(x->element_count()) / kReadUnit;
  const uint8_t* bytes = static_cast<const uint8_t*>(x->untyped_data());
  std::atomic<int32_t> some{0};
  team().run(pool, units, [&](int64_t unit) {
    some += kernels->roofline.read_blocks(bytes + unit * kReadUnit, kReadUnit / kTileBytes);
  });
  const auto multiply = [&](auto* function, int64_t count) {
    if (count > 0) team().run(pool, 64, [&](int64_t) { some += function(count); });
  };
  multiply(kernels->roofline.multiply_registers, rounds[0]);
  multiply(kernels->roofline.multiply_lanes, rounds[1]);
  done[0] = some.load();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(planish_roofline, probe,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("isa")
                                  .RemainingArgs()
                                  .RemainingRets());

}  // namespace planish
