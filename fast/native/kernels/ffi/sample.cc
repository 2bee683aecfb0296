// Sampling the next token of each row as one FFI call.
#include "sample.h"

#include <cstring>
#include <string_view>

#include "buffers.h"

namespace planish {
namespace {

Sampling read_settings(const int32_t* from) {
  Sampling sampling = {};
  std::memcpy(&sampling.temperature, from, 8);
  std::memcpy(&sampling.top_p, from + 2, 8);
  sampling.top_k = from[4];
  return sampling;
}

// Buffers: logits [rows, count], settings int32 [rows, 5] (temperature and top_p as the halves
// of a float64, then top_k), uniform int32 [rows, 2] (a float64 each). Result: token int32
// [rows], -1 where the logits are not numbers.
ffi::Error sample_tokens(std::string_view isa, ffi::RemainingArgs arguments,
                         ffi::RemainingRets results) {
  Reader in(arguments, results);
  const Kernels* kernels = read_kernels(in, isa);
  ffi::AnyBuffer* x = in.next("logits", {ffi::DataType::F32}, -1);
  if (!x || x->dimensions().size() != 2 || x->element_count() < 1) {
    in.fail("logits must be [rows, count]");
    return in.error();
  }
  const int64_t rows = x->dimensions()[0], count = x->dimensions()[1];
  const int32_t* settings = in.data<int32_t>("settings", ffi::DataType::S32, 5 * rows);
  const int32_t* uniform = in.data<int32_t>("uniform", ffi::DataType::S32, 2 * rows);
  int32_t* token = in.result<int32_t>("token", ffi::DataType::S32, rows);
  in.end();
  if (!in.good()) return in.error();
  for (int64_t row = 0; row < rows; ++row) {
    const Sampling sampling = read_settings(settings + 5 * row);
    const float* logits = static_cast<const float*>(x->untyped_data()) + row * count;
    token[row] = kernels->argmax(logits, count);
    if (token[row] < 0 || sampling.temperature == 0.0) continue;
    double drawn;
    std::memcpy(&drawn, uniform + 2 * row, 8);
    token[row] = sample(logits, count, token[row], sampling, drawn);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    planish_sample, sample_tokens,
    ffi::Ffi::Bind().Attr<std::string_view>("isa").RemainingArgs().RemainingRets());

}  // namespace planish
