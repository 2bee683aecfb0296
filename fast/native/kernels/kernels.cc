// Compiled once for each instruction set, with its compiler flags and PLANISH_ISA as its name.
#include "kernels.h"

#if defined(PLANISH_AVX512)
#include "vector_avx512.h"
#elif defined(PLANISH_AVX2)
#include "vector_avx2.h"
#elif defined(PLANISH_NEON)
#include "vector_neon.h"
#else
#include "vector_plain.h"
#endif

#include "attention.h"
#include "experts.h"
#include "float_linear.h"
#include "integer_linear.h"
#include "limits.h"
#include "rows.h"

#define PLANISH_TEXT(a) #a
#define PLANISH_QUOTED(a) PLANISH_TEXT(a)

namespace planish {
namespace PLANISH_ISA {

// The first of the largest; -1 where there is a NaN or the largest is infinite.
template <class V>
int32_t argmax(const float* x, int64_t count) {
  auto most = V::floats(-__builtin_inff());
  auto magnitude = V::ints(0);
  const auto no_sign = V::ints(0x7fffffff);
  float largest = -__builtin_inff();
  int64_t i = 0;
  for (; i + kTile <= count; i += kTile) {
    const auto value = V::load(x + i);
    most = V::max(most, value);
    magnitude = V::max(magnitude, V::bits_and(V::bits(value), no_sign));
  }
  if (i > 0) largest = V::largest(most);
  bool nan = V::largest(magnitude) > 0x7f800000;
  for (; i < count; ++i) {
    nan = nan || x[i] != x[i];
    largest = x[i] > largest ? x[i] : largest;
  }
  if (nan || !(__builtin_fabsf(largest) < __builtin_inff())) return -1;
  for (i = 0; x[i] != largest;) ++i;
  return static_cast<int32_t>(i);
}

}  // namespace PLANISH_ISA

extern "C" const Kernels* planish_kernels() {
  using namespace PLANISH_ISA;
  static const Kernels table = {
      PLANISH_QUOTED(PLANISH_ISA),
      prepare_row<Vector>,
      row_absmax<Vector>,
      integer_tiles<Vector>,
      float_tiles<Vector>,
      float_scratch,
      gate<Vector>,
      score<Vector>,
      weigh<Vector>,
      write_slots<Vector>,
      attend<Vector>,
      combine<Vector>,
      attention_scratch,
      argmax<Vector>,
      read_blocks<Vector>,
      multiply_registers<Vector>,
  };
  return &table;
}

}  // namespace planish
