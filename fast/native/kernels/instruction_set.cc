// Compiled once for each instruction set of fast/native/instruction_sets.py. A row there gives the
// compiler's flags and defines PLANISH_ISA, the name of the set; PLANISH_VECTOR, the header of its
// sixteen lanes (struct Vector); PLANISH_MATMUL, the header of its products; and PLANISH_PRODUCTS,
// the struct in that header.
#include "table.h"
#include PLANISH_VECTOR
#include PLANISH_MATMUL

#include "attention/attend.h"
#include "attention/cache.h"
#include "attention/codes.h"
#include "roofline.h"
#include "rows/argmax.h"
#include "rows/dense.h"
#include "rows/experts.h"
#include "rows/gate.h"

#define PLANISH_TEXT(a) #a
#define PLANISH_QUOTED(a) PLANISH_TEXT(a)

namespace planish {
namespace PLANISH_ISA {

using Products = PLANISH_PRODUCTS<Vector>;

Kernels make_table() {
  Kernels table = {};
  table.name = PLANISH_QUOTED(PLANISH_ISA);
  table.row_tile = Products::kRowTile;
  table.few_rows = Products::kFewRows;
  table.integer_step = Products::kIntegerStep;
  table.integer_most = Products::kIntegerMost;
  table.float_step = Products::kFloatStep;
  table.float_most = Products::kFloatMost;
  table.normalize_row = normalize_row<Vector>;
  table.row_absmax = row_absmax<Vector>;
  table.packed_bytes = Products::packed_bytes;
  table.pack_row = Products::pack_row;
  table.begin_unit = Products::begin_unit;
  table.multiply = Products::multiply;
  table.end_unit = Products::end_unit;
  table.multiply_scratch = Products::multiply_scratch;
  table.gate = gate<Vector>;
  table.dense = dense<Vector>;
  table.score_experts = score_experts<Vector>;
  table.weighted_sum = weighted_sum<Vector>;
  table.write_slots = write_slots<Vector>;
  table.attend = attend<Vector>;
  table.fold = fold<Vector>;
  table.divide = divide<Vector>;
  table.attention_scratch = attention_scratch;
  table.codes_memory = codes_memory;
  table.score_codes = score_codes<Vector>;
  table.weigh_codes = weigh_codes<Vector>;
  table.sum_codes = sum_codes<Vector>;
  table.finish_codes = finish_codes<Vector>;
  table.argmax = argmax<Vector>;
  table.roofline = {read_blocks<Vector>, Products::multiply_registers, multiply_registers<Vector>};
  return table;
}

}  // namespace PLANISH_ISA

// The table, or null where the system does not let this process use the set.
extern "C" const Kernels* planish_kernels() {
  static const Kernels table = PLANISH_ISA::make_table();
  return PLANISH_ISA::Products::allowed() ? &table : nullptr;
}

}  // namespace planish
