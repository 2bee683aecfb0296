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
#include "float_linear.h"
#include "integer_linear.h"
#include "rows.h"

#define PLANISH_TEXT(a) #a
#define PLANISH_QUOTED(a) PLANISH_TEXT(a)

namespace planish {
namespace PLANISH_ISA {

inline int32_t argmax(const float* x, int64_t count) {
  const float largest = [&] {
    auto most = Vector::floats(-__builtin_inff());
    int64_t i = 0;
    for (; i + kTile <= count; i += kTile) most = Vector::max(most, Vector::load(x + i));
    float value = Vector::largest(most);
    for (; i < count; ++i) value = x[i] > value ? x[i] : value;
    return value;
  }();
  for (int64_t i = 0; i < count; ++i) {
    if (x[i] == largest) return static_cast<int32_t>(i);
  }
  return 0;  // nothing but NaN
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
      write_slot<Vector>,
      attend<Vector>,
      combine<Vector>,
      attention_scratch,
      argmax,
  };
  return &table;
}

}  // namespace planish
