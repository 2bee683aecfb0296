// What the kernels compute, and the table of one instruction set's implementations.
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
// One row does a handful of instructions for 64 bytes, which memory delivers in 10 to 20 cycles:
// it runs at the speed of memory. Many rows use each loaded register 8 times, in blocks of 8 rows
// by 32 outputs that keep 16 sums in registers: they run at the speed of the multiplier.
//
// Measured (4 cores of an AMD EPYC Zen 5, 5632 x 2048; README.md has whole models):
//     rows     INT8                          INT4, g = 128
//     1        at the memory's rate          at the memory's rate
//     512      3.3 of 3.6 TOP/s (91 %)       2.9 of 3.6 TOP/s (83 %)
//
// The integer sums are exact. The float operations behind them are rounded one by one in the
// order of reference/linear.py; nothing may be fused or reordered, hence -ffp-contract=off.
#pragma once

#include <cstdint>

namespace planish {

constexpr int64_t kTile = 16;      // outputs of a tile
constexpr int64_t kTileBytes = 64;
constexpr int64_t kRowTile = 8;    // rows that are multiplied together at most
constexpr int64_t kMostHead = 256; // the widest head of attention

// Rows are taken in blocks of 8, and what is left in blocks of 4, 2 and 1.
inline int64_t row_tile(int64_t left) {
  return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// One linear's weights. groups == 1 for INT8 and for whole-row INT4.
struct Weight {
  int bits;
  const uint8_t* codes;   // [tiles, blocks, 16, 4]
  const void* scale;      // INT8: float [N] or [1]; INT4: half or float [tiles, groups, 16]
  const uint8_t* zero;    // INT4: [tiles, groups, 16], or null where it is 8 everywhere
  const float* bias;      // [N] or null
  bool half_scale;        // scale is float16
  bool one_scale;         // INT8 with a single scale
  int64_t outputs;        // N
  int64_t blocks;         // of 64 bytes along K
  int64_t groups;
  int64_t group_blocks;   // blocks of one group
};

enum class Norm { kNone, kRms, kLayer };
enum class Granularity { kFloat, kRow, kGroup, kGiven };

// How the rows that a linear multiplies come about: x, or its norm.
struct Source {
  const float* x;       // [rows, K]
  Norm norm;
  const float* norm_weight;  // [K] or null
  const float* norm_bias;    // [K] or null
  float eps;
  int64_t inputs;       // K
};

// Quantized rows, or float rows, in row tiles: a tile of R rows from row r on begins at
// r * steps * 4 codes (r * groups sums, r * scale_groups scales) and holds [steps, R, 4] codes.
struct Rows {
  int8_t* codes;
  float* scales;     // [groups or 1, R] in each tile
  int32_t* sums;     // [groups, R]: sums of codes, for the zero points
  float* floats;     // float rows instead: [steps * 4, R] in each tile
  Granularity granularity;
  int64_t rows;
  int64_t steps;     // of 4 inputs, an even number
  int64_t groups;    // of the weights
  int64_t group_inputs;
  int64_t scale_groups;
};

struct Output {
  float* y;                // [rows, N]
  const float* residual;   // [rows, N] or null: added last
  int64_t stride;          // N, or less where y holds some outputs only:
  int64_t first;           // the output that the first column holds
};

// Attention over a cache whose keys lie in tiles of 16 slots. H query heads share K of keys.
struct Attention {
  const float* q;          // [B, T, H * D]
  const float* k;          // [B, T, K * D]
  const float* v;          // [B, T, K * D]
  const float* cos;        // [P, rotary / 2] or null
  const float* sin;
  const int32_t* positions;  // [B, T]
  void* keys;              // float or int8 [B, K, S / 16, D, 16]
  void* values;            // float or int8 [B, K, S, D]
  float* key_scales;       // [B, K, S], INT8 only
  float* value_scales;     // [B, K, S]
  float* out;              // [B, T, H * D]
  const float* slopes;     // [H] of linear biases, or null
  int64_t batch, tokens, heads, kv_heads, head_dim, rotary, slots;
  int64_t window;          // slots that a token reads, its own the last
  float divisor;           // of scores
  float cap;               // scores become cap * tanh(scores / cap); 0 caps nothing
  bool int8;
  bool interleaved;        // rotary pairs are neighbours, not halves
  bool divided;            // biases are added before the division
  bool bfloat16;           // biases are rounded
};

// Up to 8 query rows of one key-value head over some slots. Row i is the query of token
// i / (H / K) and head i % (H / K) of those that share the keys. `mixed` has room for 8 rows.
struct QueryTile {
  int64_t batch, head;    // head: of keys and values
  int64_t first, count;   // rows
  int64_t begin, end;     // slots; begin is a multiple of 128
  float* largest;         // [8] largest score so far
  float* sum;             // [8] sum of exp(score - largest)
  float* mixed;           // [8, D] sum of exp(score - largest) * value
};

// One instruction set.
struct Kernels {
  const char* name;
  // Row `row` of the source into place; `scratch` holds K + 16 floats. With kGiven, `scale` is used.
  void (*prepare_row)(const Source&, const Rows&, int64_t row, float scale, float* scratch);
  float (*row_absmax)(const Source&, int64_t row, float* scratch);
  // Outputs of `count` tiles from `tile` on, for all rows.
  void (*integer_tiles)(const Weight&, const Rows&, const Output&, int64_t tile, int64_t count);
  void (*float_tiles)(const Weight&, const Rows&, const Output&, int64_t tile, int64_t count,
                      float* scratch);
  int64_t (*float_scratch)(const Rows&);  // floats that float_tiles wants
  // y = silu(gate) * up of `count` columns, gate and up [rows, stride], y [rows, y_stride].
  void (*gate)(const float* gate, const float* up, int64_t stride, float* y, int64_t y_stride,
               int64_t rows, int64_t count);
  // y[n] = sum_k x[k] w[n, k] of outputs first..last, in floats; x is padded to a multiple of 16.
  void (*score)(const float* x, const float* w, int64_t inputs, int64_t first, int64_t last,
                float* y);
  // y = residual (or nothing) + the sum of shares[e] * parts[e], `count` columns, in their order.
  void (*weigh)(const float* const* parts, const float* shares, int64_t experts,
                const float* residual, float* y, int64_t count);
  void (*write_slots)(const Attention&, int64_t first, int64_t last, float* scratch);  // tokens
  void (*attend)(const Attention&, const QueryTile&, float* scratch);
  void (*combine)(const Attention&, const QueryTile* parts, int64_t count);
  int64_t (*attention_scratch)(const Attention&);
  int32_t (*argmax)(const float* x, int64_t count);  // the first of the largest, or -1 for NaN
  int32_t (*read_blocks)(const uint8_t* p, int64_t blocks);  // of 64 bytes, a multiple of 4
  int32_t (*multiply_registers)(int64_t rounds);             // of 2048 operations
};

}  // namespace planish
