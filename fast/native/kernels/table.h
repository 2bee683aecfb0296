// What the kernels compute, and the table of functions that one instruction set provides.
//
// A linear is y[r, n] = sum_k x[r, k] w[n, k]. Weights are codes of 8 or 4 bits in tiles of 16
// outputs (reference/packing.py): 64 bytes hold
//
//            INT8: 4 inputs                           INT4: 8 inputs
//            byte 0  1  2  3   4  5  6  7  ...        byte 0    1    2    3    4 ...
//     output      0  0  0  0   1  1  1  1  ... 15          0    0    0    0    1 ... 15
//     input       0  1  2  3   0  1  2  3  ...  3    low   0    1    2    3    0 ...  3
//                                                    high  4    5    6    7    4 ...  7
//
// so that one load fills a register in which each 32-bit lane belongs to one output, and one
// instruction (vpdpbusd, sdot) multiplies it with four inputs that are the same for all lanes:
//
//     bytes of weights   loads   unpacking         products       weights
//     64 of INT8         1       1 xor             1 vpdpbusd     64
//     64 of INT4         1       2 and, 1 shift    2 vpdpbusd     128
//     64 of INT4, W4A16  1       7 shift, 8 table  8 fma          128
//     64 of INT8, W8A16  1       7 shift, 4 convert 4 fma         64
//
// One row takes a handful of instructions for 64 bytes, which memory delivers in 10 to 20 cycles,
// so memory is the limit. Many rows use each loaded register 8 times, in blocks of 8 rows by 32
// outputs that keep 16 sums in registers, so the multiplier is the limit.
//
// Measured (4 cores of an AMD EPYC Zen 5, 5632 x 2048; docs/benchmarks.md has whole models):
//     rows     INT8                          INT4, g = 128
//     1        at the memory's rate          at the memory's rate
//     512      3.3 of 3.6 TOP/s (91 %)       2.9 of 3.6 TOP/s (83 %)
//
// The integer sums are exact. The float operations after them are rounded one by one in the
// order of reference/linear.py. Nothing may be fused or reordered, hence -ffp-contract=off.
#pragma once

#include <cstdint>

namespace planish {

constexpr int64_t kTile = 16;  // outputs of a tile
constexpr int64_t kTileBytes = 64;
constexpr int64_t kQueryRows = 8;   // query rows of attention that are computed together
constexpr int64_t kSlots = 128;     // slots of one step of a softmax
constexpr int64_t kMostHead = 256;  // the widest head of attention

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// scale = max(absmax, 1e-5) / 127 of INT8 activations (docs/spec.md 2); NaN stays NaN.
inline float int8_scale(float absmax) { return (absmax < 1e-5f ? 1e-5f : absmax) / 127.0f; }

// One linear's weights: w = (code - zero) * scale, or code * scale + offset. INT8 codes have no
// zero points. An offset makes them unsigned, and those of INT4 0..15. groups == 1 where a row of
// weights has one scale. Offsets, orders and INT8 in groups are for kFloat rows only.
struct Weight {
  int bits;
  const uint8_t* codes;      // [tiles, blocks, 16, 4]
  const void* scale;         // half or float [tiles, groups, 16]; if row_scale, float [N] or [1]
  const uint8_t* zero;       // INT4: [tiles, groups, 16], or null if all are 8
  const void* offset;        // half or float [tiles, groups, 16], or null
  const int32_t* order;      // [K]: column k belongs to input order[k]; null if inputs are in order
  const int32_t* code_sums;  // [tiles, 16]: of each output's codes, for a zero point of the inputs
  const float* bias;         // [N] or null
  bool half_scale;           // scale is float16
  bool half_offset;
  bool row_scale;   // INT8 of whole rows
  bool one_scale;   // and with a single scale
  int64_t outputs;  // N
  int64_t blocks;   // of 64 bytes along K
  int64_t groups;
  int64_t group_blocks;  // blocks of one group of inputs
};

enum class Norm { kNone, kRms, kLayer };
enum class Granularity { kFloat, kRow, kGroup, kGiven };

// How the rows that a linear multiplies come about: x, or its norm.
struct Source {
  const float* x;  // [rows, K]
  Norm norm;
  const float* norm_weight;  // [K] or null
  const float* norm_bias;    // [K] or null
  float eps;
  int64_t inputs;                  // K
  const int32_t* order = nullptr;  // [K]: the packed input k is input order[k]; null if in order
};

// Rows packed for a linear, quantized or as floats. Only the instruction set that packs them knows
// their layout in memory, which may depend on every other field.
struct PackedRows {
  uint8_t* memory;  // packed_bytes() bytes, aligned to 64
  Granularity granularity;
  int64_t rows;
  int64_t inputs;        // K
  int64_t groups;        // of the weights
  int64_t group_inputs;  // inputs of one group
  bool totals = false;   // kFloat: with the sum of each group's inputs, which offsets multiply
  const int8_t* zero = nullptr;  // kGiven: the zero point of codes -128..127, or null
};

struct Output {
  float* y;               // [rows, N]
  const float* residual;  // [rows, N] or null: added last
  int64_t stride;         // N, or less if y has only some of the outputs
  int64_t first;          // the output in y's first column
  bool stream = false;    // y is too large for near caches, its rows are whole lines
};

constexpr int64_t kPage = 128;  // slots of a page

// Attention over a cache whose keys are in tiles of 16 slots: H query heads, K key-value heads. A
// row of the cache is one sequence's. Its slots are contiguous; or a ring, where position p is at
// slot p % S and S is a multiple of 128; or in pages: then B and S of the arrays are pages and 128,
// and `table` has the page of each 128 slots of each row.
struct Attention {
  const float* q;    // [B, T, H * D]
  const float* k;    // [B, T, K * D]
  const float* v;    // [B, T, K * D]
  const float* cos;  // [P, rotary / 2] or null
  const float* sin;
  const int32_t* positions;  // [B, T]
  const int32_t* rows;       // [B, T] each token's row, -1 for padding; null: row b has tokens [b]
  const int32_t* table;      // [table_rows, row_pages], or null if slots are contiguous
  void* keys;         // float or int8 [B, K, S / 16, D, 16]; if codes, [B, K, S / 16, D / 4, 16, 4]
  void* values;       // float or int8 [B, K, S, D]; if codes, [B, K, D / 16, S / 4, 16, 4]
  float* key_scales;  // [B, K, S], INT8 only, or null if fixed
  float* value_scales;  // [B, K, S]
  const float* fixed;   // [3] calibrated scales of q, k and v, or null
  float* out;           // [B, T, H * D]
  const float* slopes;  // [H] of linear biases, or null
  int64_t batch, tokens, heads, kv_heads, head_dim, rotary, slots;
  int64_t table_rows, row_pages, pages;
  int64_t ring;      // positions of a row, if its slots are a ring, or 0
  int64_t window;    // slots that a token reads; the last is its own
  float divisor;     // of scores
  float cap;         // scores become cap * tanh(scores / cap); 0 caps nothing
  bool int8;         // the cache
  bool codes;        // both products are of codes
  bool interleaved;  // rotary pairs are neighbours, not halves
  bool divided;      // biases are added before the scores are divided
  bool bfloat16;     // biases are rounded to bfloat16
};

// The positions of a row.
inline int64_t capacity(const Attention& a) {
  return a.table ? a.row_pages * kPage : a.ring ? a.ring : a.slots;
}

// A head's slots from `slot` on, of its `index`-th array of slots.
struct Place {
  int64_t index, slot;
};

// Where a position of a row's key-value head is; the next ones up to a multiple of 128 follow it.
inline Place locate(const Attention& a, int64_t row, int64_t head, int64_t slot) {
  if (!a.table) return {row * a.kv_heads + head, a.ring ? slot % a.slots : slot};
  return {a.table[row * a.row_pages + slot / kPage] * a.kv_heads + head, slot % kPage};
}

// Up to kQueryRows queries of one key-value head over some slots of one row. Query i is that of
// token `token` + i / (H / K) and of head i % (H / K) among those that share the keys. `context`
// has room for 8 queries.
struct QueryTile {
  int64_t row, head;     // head: of keys and values
  int64_t token;         // the row's first
  int64_t first, count;  // queries
  int64_t begin, end;    // slots; begin is a multiple of 128
  float* largest;        // [8] largest score so far
  float* sum;            // [8] sum of exp(score - largest)
  float* context;        // [8, D] sum of exp(score - largest) * value
};

inline int64_t count_steps(const QueryTile& t) { return ceil_div(t.end - t.begin, kSlots); }

// Some of a tile's steps of kSlots slots.
struct Steps {
  int64_t first, last;
};

// Peak rates of the processor, measured with the kernels' own instructions; for benchmarks.
struct Roofline {
  int32_t (*read_blocks)(const uint8_t* p, int64_t blocks);  // of 64 bytes, a multiple of 4
  int32_t (*multiply_registers)(int64_t rounds);             // of 2048 operations
  int32_t (*multiply_lanes)(int64_t rounds);                 // the same without matrix tiles
};

// One instruction set. docs/kernels.md shows how to add one.
struct Kernels {
  const char* name;

  // How to divide the work of a linear. Rows are packed `row_tile` at a time, each pack by one
  // thread. Up to `few_rows` rows are limited by memory and read long streams of weights; more rows
  // are limited by the multiplier and take integer_step or float_step tiles of weights at a time.
  // Tiles may share what a thread reads of the rows: a unit has up to integer_most or float_most of
  // them if all threads then get some.
  int64_t row_tile;
  int64_t few_rows;
  int64_t integer_step;
  int64_t integer_most;
  int64_t float_step;
  int64_t float_most;

  // Writes row `row` of the source as floats; y has room for K rounded up to a multiple of 16.
  void (*normalize_row)(const Source&, int64_t row, float* y);
  float (*row_absmax)(const Source&, int64_t row, float* scratch);  // scratch: K + 16 floats

  // Packs row `row` of the source. `scale` is used with kGiven only; scratch: K + 16 floats, twice
  // as many if the source has an order.
  int64_t (*packed_bytes)(const PackedRows&);
  void (*pack_row)(const Source&, const PackedRows&, int64_t row, float scale, float* scratch);

  // Computes the outputs of `count` tiles from `tile` on, for all rows; scratch: multiply_scratch()
  // floats. If begin_unit and end_unit are not null, a thread calls them before and after it
  // multiplies some tiles: matrix tiles are configured and released there.
  void (*begin_unit)(const PackedRows&);
  void (*multiply)(const Weight&, const PackedRows&, const Output&, int64_t tile, int64_t count,
                   float* scratch);
  void (*end_unit)(const PackedRows&);
  int64_t (*multiply_scratch)(const PackedRows&);

  // y = silu(gate) * up of `count` columns from out.first on, gate and up [rows, stride]. If
  // out.stream, end_unit() follows.
  void (*gate)(const float* gate, const float* up, int64_t stride, const Output& out, int64_t rows,
               int64_t count);
  // y[r, n] = sum_k x[r, k] w[n, k] of outputs first..last, in floats: x [rows, stride], zeros
  // after the inputs; y [rows, outputs].
  void (*dense)(const float* x, int64_t stride, int64_t rows, const float* w, int64_t inputs,
                int64_t first, int64_t last, float* y, int64_t outputs);
  // Router logits y[r, n] = sum_k x[r, k] w[n, k] of experts first..last, in floats: x [rows,
  // stride], zeros after the inputs; y [rows, experts].
  void (*score_experts)(const float* x, int64_t stride, int64_t rows, const float* w,
                        int64_t inputs, int64_t first, int64_t last, float* y, int64_t experts);
  // y = residual (if not null) + the sum of weights[e] * outputs[e] in that order, `count` columns.
  void (*weighted_sum)(const float* const* outputs, const float* weights, int64_t experts,
                       const float* residual, float* y, int64_t count);

  void (*write_slots)(const Attention&, int64_t first, int64_t last, float* scratch);  // tokens
  void (*attend)(const Attention&, const QueryTile&, float* scratch);
  void (*fold)(const Attention&, const QueryTile& whole, const QueryTile& part);  // of more slots
  void (*divide)(const Attention&, const QueryTile& whole);  // writes the output
  int64_t (*attention_scratch)(const Attention&);

  // INT8 attention of a tile with its whole reach: three passes, each over parts of its steps,
  // after all parts of the pass before; then the sum and context of the tile. memory:
  // codes_memory() floats that the passes share; scratch: attention_scratch(); sums: [8, D] of each
  // part.
  int64_t (*codes_memory)(int64_t steps);
  void (*score_codes)(const Attention&, const QueryTile&, Steps, float* memory, float* scratch);
  void (*weigh_codes)(const Attention&, const QueryTile&, Steps, float* memory);
  void (*sum_codes)(const Attention&, const QueryTile&, Steps, float* memory, int32_t* sums);
  void (*finish_codes)(const Attention&, const QueryTile&, float* memory, const int32_t* sums,
                       int64_t parts);

  int32_t (*argmax)(const float* x, int64_t count);  // the first maximum; see rows/argmax.h
  Roofline roofline;
};

}  // namespace planish
