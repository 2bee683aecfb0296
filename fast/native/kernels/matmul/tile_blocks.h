// Blocks of 32 rows x 32 outputs, multiplied in 2 x 2 tiles.
//
// While the tiles multiply, the other units of the core can work on earlier blocks. So a block
// passes through three stages, and each call of Blocks::multiply() runs all of them, interleaved:
//
//     products    of this block, step by step: 4 tile loads, 4 products
//     stores      of the sums of the block before, in the first step
//     floats      of the block before that: after each product the scales of some rows
//
// drain() completes the last two blocks. The tiles are
//
//     0 1    sums of the upper 16 rows        4 5    upper and lower rows
//     2 3    sums of the lower 16 rows        6 7    left and right weights
#pragma once

#include "floats.h"
#include "integer.h"
#include "tile_rows.h"
#include "tiles.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kBlock = 32;  // rows, and outputs
constexpr int64_t kBlockSums = kBlock * kBlock;
constexpr int64_t kSumStride = kBlock * 4;  // bytes

// The float operations after the integer sums (docs/spec.md 4).
enum class After {
  kInt8,        // y = (sum * a_scale) * w_scale
  kInt8Around,  // the same of sum - zero * (sum of the weights' codes)
  kInt4,        // y = (sum * w_scale) * a_scale, a row is one group
  kGroup,       // total += (sum * w_scale) * a_scale for each group; y = total
  kToken,       // total += sum * w_scale for each group; y = total * a_scale
  kFloat,       // y = sum * w_scale, a row is one group; the sums are floats
  kFloatGroup,  // total += sum * w_scale for each group; y = total; the sums are floats
  kOffset,      // and total += (sum of the group's inputs) * offset
};

constexpr bool of_floats(After after) {
  return after == After::kFloat || after == After::kFloatGroup || after == After::kOffset;
}
constexpr bool of_int8(After after) { return after == After::kInt8 || after == After::kInt8Around; }
constexpr bool one_group(After after) {
  return of_int8(after) || after == After::kInt4 || after == After::kFloat;
}

// Integer sums of groups start at the bits of the float 1.5 * 2^23. While the sum s of the products
// is less than 2^22 in magnitude, the result is the bits of the float 1.5 * 2^23 + s, from which a
// subtraction gives s: beside tiles a core subtracts twice as fast as it converts integers.
constexpr float kShift = 12582912.0f;
alignas(64) constexpr float kShifts[kTile] = {kShift, kShift, kShift, kShift, kShift, kShift,
                                              kShift, kShift, kShift, kShift, kShift, kShift,
                                              kShift, kShift, kShift, kShift};
constexpr int64_t kShiftedInputs = 2048;  // products of codes up to 15 and 127

// One linear of a unit of work.
struct TileCall {
  const Weight& weight;
  const TileRows& rows;
  const Output& out;
};

// Where a block's operands begin, each tile's steps in a row. If there is one row tile, the second
// pointer is not used. ahead: weights that later blocks multiply, of which each step prefetches
// `lines` lines. residual: where the block's begins if it is added soon, of which each step
// prefetches four rows, or null.
struct Operands {
  const int8_t* rows[2];
  const uint8_t* weights[2];
  const uint8_t* ahead[2];
  int64_t lines;
  const float* residual;
};

// A block on its way through the stages.
struct Block {
  int32_t* sums;        // [32, 32]
  float* totals;        // [32, 32] of the groups so far, unless a row is one group
  const float* scales;  // [32] of the rows, or the sums of their inputs
  int64_t row, tile, tiles, group;
  bool scaled;  // float operations follow: not if more of its inputs do
  bool first, last;
};

// The float operations of a block, some rows at a time. It has its own copies of what they need and
// is inlined everywhere, or the compiler would read them again after every load of a tile.
template <class V, After kAfter>
class ScaledRows {
 public:
  using F = typename V::Floats;

  PLANISH_INLINE ScaledRows(const TileCall& call, const Block& block)
      : sums_(block.sums), totals_(block.totals), scales_(block.scales), first_(block.first) {
    scale_[0] = float_scale<V>(call.weight, block.tile, block.group);
    scale_[1] = float_scale<V>(call.weight, block.tile + block.tiles - 1, block.group);
    if constexpr (kAfter == After::kInt8Around) {
      shift_[0] = input_shift<V>(call.weight, call.rows.zero, block.tile);
      shift_[1] = input_shift<V>(call.weight, call.rows.zero, block.tile + block.tiles - 1);
    }
    if constexpr (kAfter == After::kOffset) {
      offset_[0] = float_offset<V>(call.weight, block.tile, block.group);
      offset_[1] = float_offset<V>(call.weight, block.tile + block.tiles - 1, block.group);
    }
    if constexpr (one_group(kAfter)) {
      const int64_t column = block.tile * kTile;
      const int64_t y = block.row * call.out.stride + column - call.out.first;
      stride_ = call.out.stride;
      stream_ = call.out.stream;
      y_ = call.out.y + y;
      residual_ = call.out.residual ? call.out.residual + y : nullptr;
      bias_ = call.weight.bias ? call.weight.bias + column : nullptr;
    }
  }
  PLANISH_INLINE bool left() const { return next_ < kBlock; }

  // The next kCount rows, of which 32 is a multiple. Floats have more products than rows.
  template <int kCount>
  PLANISH_INLINE void take() {
    static_assert(kBlock % kCount == 0);
    if (of_floats(kAfter) && !left()) return;
    for (int i = 0; i < kCount; ++i) take_row(next_ + i);
    next_ += kCount;
  }

  // The value of 16 outputs of a row.
  PLANISH_INLINE F scaled(int64_t row, int c) const {
    auto sum = V::load_ints(sums_ + row * kBlock + c * kTile);
    if constexpr (kAfter == After::kInt8Around) sum = V::subtract(sum, shift_[c]);
    const F value = unscaled(sum);
    if constexpr (of_floats(kAfter) || kAfter == After::kToken) {
      return V::multiply(value, scale_[c]);
    } else if constexpr (of_int8(kAfter)) {
      return V::multiply(V::multiply(value, V::floats(scales_[row])), scale_[c]);
    } else {
      return V::multiply(V::multiply(value, scale_[c]), V::floats(scales_[row]));
    }
  }

 private:
  PLANISH_INLINE static F unscaled(typename V::Ints sum) {
    if constexpr (of_floats(kAfter)) return V::from_bits(sum);
    else if constexpr (one_group(kAfter)) return V::to_floats(sum);
    else return V::subtract(V::from_bits(sum), V::floats(kShift));
  }
  PLANISH_INLINE void take_row(int64_t row) {
    unroll<2>([&](auto c) PLANISH_INLINE {
      if constexpr (one_group(kAfter)) write(row * stride_ + c * kTile, c * kTile, scaled(row, c));
      else add(totals_ + row * kBlock + c * kTile, scaled(row, c));
      if constexpr (kAfter == After::kOffset) {
        float* total = totals_ + row * kBlock + c * kTile;
        const F added = V::multiply(V::floats(scales_[row]), offset_[c]);
        V::store(total, V::add(V::load(total), added));
      }
    });
  }
  PLANISH_INLINE void add(float* total, F value) const {
    V::store(total, V::add(first_ ? V::floats(0.0f) : V::load(total), value));
  }
  PLANISH_INLINE void write(int64_t at, int64_t column, F value) const {
    if (bias_) value = V::add(value, V::load(bias_ + column));
    if (residual_) value = V::add(V::load(residual_ + at), value);
    if (stream_) V::stream(y_ + at, value);
    else V::store(y_ + at, value);
  }

  const int32_t* sums_;
  float* totals_;
  const float* scales_;
  bool first_, stream_ = false;
  F scale_[2], offset_[2];
  typename V::Ints shift_[2];
  float* y_;
  const float *residual_, *bias_;
  int64_t stride_, next_ = 0;
};

// Writes the outputs of a block that exist.
template <class V, After kAfter>
__attribute__((noinline)) void write_block(const TileCall& call, const Block& block) {
  const ScaledRows<V, kAfter> rows(call, block);
  const int64_t left = call.rows.rows - block.row;
  for (int64_t row = 0; row < kBlock && row < left; ++row) {
    for (int c = 0; c < block.tiles; ++c) {
      typename V::Floats value;
      if constexpr (one_group(kAfter)) value = rows.scaled(row, c);
      else value = V::load(block.totals + row * kBlock + c * kTile);
      if (kAfter == After::kToken) value = V::multiply(value, V::floats(block.scales[row]));
      finish<V>(call.weight, call.out, block.tile + c, block.row + row, value);
    }
  }
}

// kRowsPerStep: of float operations, for each part of a step.
template <class V, After kAfter, int kRowsPerStep>
class Blocks {
 public:
  // spare: memory for the sums of one block.
  Blocks(const TileCall& call, int32_t* spare)
      : call_(call),
        row_bytes_(call.rows.step_bytes()),
        tile_bytes_(call.rows.tile_bytes()),
        width_(call.rows.width) {
    before_->sums = spare;
  }

  // To be filled in before multiply(). Blocks are never copied: a copy would wait for their fields.
  Block& next() { return *next_; }

  // `steps` steps of kRowTiles row tiles, added to start [32, 32] if it is not null.
  template <int kRowTiles>
  void multiply(Operands at, int64_t steps, const int32_t* start) {
    if (can_interleave(*ready_)) {
      multiply_and_scale<kRowTiles>(at, steps, start);
    } else {
      step<kRowTiles, true>(at, start, [] {});
      for (int64_t s = 1; s < steps; ++s) step<kRowTiles, false>(at, start, [] {});
    }
    if (ready_->scaled) write(*ready_);
    Block* done = ready_;
    ready_ = before_;
    before_ = next_;
    next_ = done;
  }

  void drain() {
    if (ready_->scaled) scale(*ready_);
    unroll<4>([&](auto i) PLANISH_INLINE { store_sums<i>(); });
    if (before_->scaled) scale(*before_);
  }

 private:
  // Whether the rows of a block may be taken one by one: all of its outputs exist, or only totals
  // are added up.
  bool can_interleave(const Block& block) const {
    if (!one_group(kAfter)) return block.scaled;
    const Weight& w = call_.weight;
    return block.scaled && block.row + kBlock <= call_.rows.rows && block.tiles == 2 &&
           (block.tile + 2) * kTile <= w.outputs;
  }

  template <int kRowTiles>
  PLANISH_INLINE void multiply_and_scale(Operands at, int64_t steps, const int32_t* start) {
    constexpr int kCount = kRowsPerStep / (2 * kRowTiles);
    ScaledRows<V, kAfter> rows(call_, *ready_);
    const auto take = [&]() PLANISH_INLINE { rows.template take<kCount>(); };
    step<kRowTiles, true>(at, start, take);
    int64_t s = 1;
    for (; s < steps && rows.left(); ++s) step<kRowTiles, false>(at, start, take);
    for (; s < steps; ++s) step<kRowTiles, false>(at, start, [] {});
    while (rows.left()) rows.template take<4>();
    if (one_group(kAfter)) ready_->scaled = false;  // nothing remains to be written
  }

  void scale(const Block& block) {
    if constexpr (!one_group(kAfter)) {
      ScaledRows<V, kAfter> rows(call_, block);
      while (rows.left()) rows.template take<4>();
    }
    write(block);
  }
  void write(const Block& block) {
    if (one_group(kAfter) || block.last) write_block<V, kAfter>(call_, block);
  }

  // Multiplies 2 x 2 tiles, or 1 x 2; calls `then` after each product.
  template <int kRowTiles, bool kFirst, class Then>
  PLANISH_INLINE void step(Operands& at, const int32_t* start, Then&& then) {
    unroll<of_floats(kAfter) ? kFloatParts : 1>([&](auto part) PLANISH_INLINE {
      constexpr bool kBegin = kFirst && part == 0;
      load_tile<4>(at.rows[0] + part * tile_bytes_, width_);
      if constexpr (part == 0) load_tile<6>(at.weights[0], kTileBytes);
      product<0, kBegin>(start, then);
      if constexpr (part == 0) load_tile<7>(at.weights[1], kTileBytes);
      product<1, kBegin>(start, then);
      if constexpr (kRowTiles == 2) {
        load_tile<5>(at.rows[1] + part * tile_bytes_, width_);
        product<2, kBegin>(start, then);
        product<3, kBegin>(start, then);
      } else if constexpr (kBegin) {
        store_sums<2>();
        store_sums<3>();
      }
    });
    unroll<2>([&](auto i) PLANISH_INLINE {
      at.rows[i] += row_bytes_;
      at.weights[i] += tile_bytes_;
    });
    prefetch(at);
  }

  // Into the second cache.
  PLANISH_INLINE void prefetch(Operands& at) const {
    for (int64_t line = 0; line < at.lines; ++line) {
      unroll<2>([&](auto i) PLANISH_INLINE {
        __builtin_prefetch(at.ahead[i], 0, 2);
        at.ahead[i] += kTileBytes;
      });
    }
    if (!one_group(kAfter) || !at.residual) return;
    for (int row = 0; row < 4; ++row, at.residual += call_.out.stride) {
      __builtin_prefetch(at.residual, 0, 2);
      __builtin_prefetch(at.residual + kTile, 0, 2);
    }
  }

  template <int kSum, bool kFirst, class Then>
  PLANISH_INLINE void product(const int32_t* start, Then&& then) {
    if constexpr (kFirst) {
      store_sums<kSum>();
      if constexpr (!one_group(kAfter) && !of_floats(kAfter)) load_tile<kSum>(kShifts, 0);
      else if (one_group(kAfter) && start) load_tile<kSum>(start + offset(kSum), kSumStride);
      else zero_tile<kSum>();
    }
    if constexpr (of_floats(kAfter)) dot_float_tiles<kSum, 4 + kSum / 2, 6 + kSum % 2>();
    else dot_tiles<kSum, 4 + kSum / 2, 6 + kSum % 2>();
    then();
  }

  template <int kSum>
  PLANISH_INLINE void store_sums() {
    store_tile<kSum>(before_->sums + offset(kSum), kSumStride);
  }
  static constexpr int64_t offset(int sum) {
    return sum / 2 * kTileRows * kBlock + sum % 2 * kTile;
  }

  const TileCall call_;
  const int64_t row_bytes_, tile_bytes_, width_;
  Block blocks_[3] = {};
  Block *next_ = blocks_, *before_ = blocks_ + 1, *ready_ = blocks_ + 2;  // before_ is multiplied,
                                                                          // ready_ stored
};

}  // namespace planish::PLANISH_ISA
