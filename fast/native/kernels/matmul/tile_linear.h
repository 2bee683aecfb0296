// A linear by matrix tiles, for many rows.
//
//     for 512 rows:                  their sums fit into a core's second cache
//       for a chunk of the inputs:   512, or a group; 32 outputs of it fit into the first cache
//         for 32 outputs:            INT4 codes are unpacked here, once for all rows
//           for 32 rows:             one block, or one for each group of the chunk
//
// INT8 tiles are what dot_tiles() multiplies: [4 inputs, 16 outputs, 4]. INT4 ones become so. For
// float rows codes become bfloat16s [2 inputs, 16 outputs, 2], of each four inputs 0 2, then 1 3;
// with offsets as they are, 0..15 or 0..255.
#pragma once

#include "tile_blocks.h"

namespace planish::PLANISH_ISA {

constexpr int64_t kChunkInputs = 512;
constexpr int64_t kWholeInputs = 1024;  // one chunk up to so many: their sums need no memory
constexpr int64_t kRowsAtOnce = 512;
constexpr int64_t kMostPairs = 8;  // of tiles of weights
constexpr int64_t kGap = 256;

// The inputs of a chunk, at least one group; of floats half as many.
inline int64_t chunk_inputs(const TileRows& rows) {
  const int64_t most = rows.floats ? kChunkInputs / 2 : kChunkInputs;
  const int64_t inputs = rows.steps * rows.depth;
  if (rows.groups > 1) return inputs > most ? inputs : most;
  return !rows.floats && inputs <= kWholeInputs ? kWholeInputs : most;
}

// Pairs of tiles that are multiplied before the next chunk: more if the rows do not fit into the
// second cache, and are read from the third one for each of them.
inline int64_t pairs_at_once(const PackedRows& p) {
  const bool many = p.inputs > 4096 || p.granularity == Granularity::kFloat;
  return many ? kMostPairs : kMostPairs / 2;
}

// The memory of a unit of work: sums or totals [pairs, rows, 32], two blocks of sums, and a pair of
// tiles of one chunk. A gap keeps the sums of a block and its totals, which are used at the same
// time, at different addresses modulo 4096.
struct TileScratch {
  int32_t* sums;
  int32_t* blocks;
  uint8_t* panel;
  int64_t pairs, rows, panel_bytes;

  TileScratch(const PackedRows& p, float* memory)
      : pairs(pairs_at_once(p)),
        rows(ceil_div(p.rows < kRowsAtOnce ? p.rows : kRowsAtOnce, kBlock) * kBlock),
        panel_bytes(chunk_inputs(TileRows(p)) * kTile * (TileRows(p).floats ? 2 : 1)) {
    sums = reinterpret_cast<int32_t*>(memory);
    blocks = sums + pairs * rows * kBlock + kGap;
    panel = reinterpret_cast<uint8_t*>(blocks + 2 * kBlockSums);
  }
  int64_t floats() const {
    return pairs * rows * kBlock + kGap + 2 * kBlockSums + 2 * panel_bytes / 4;
  }
};

using Line = uint8_t __attribute__((vector_size(64)));

// What is subtracted from the INT4 codes of a tile's group, for each byte.
inline void fill_zeros(const Weight& w, int64_t tile, int64_t group, Line& zeros) {
  const uint8_t* zero = w.zero ? w.zero + (tile * w.groups + group) * kTile : nullptr;
  for (int i = 0; i < 64; ++i) zeros[i] = w.offset ? 0 : zero ? zero[i / 4] : 8;
}

// `count` blocks of INT4 -> int8 [inputs / 4, 16, 4] minus zero points.
inline void unpack_blocks(const uint8_t* codes, int64_t count, const Line& zeros, uint8_t* out) {
  for (int64_t b = 0; b < count; ++b) {
    Line both;
    __builtin_memcpy(&both, codes + b * kTileBytes, kTileBytes);
    const Line low = (both & 15) - zeros, high = (both >> 4) - zeros;
    __builtin_memcpy(out + 2 * b * kTileBytes, &low, kTileBytes);
    __builtin_memcpy(out + (2 * b + 1) * kTileBytes, &high, kTileBytes);
  }
}

// `count` blocks of codes -> bfloat16s [inputs / 2, 16, 2] minus zero points, and zeros for the
// blocks up to `padded`.
template <class V>
void unpack_floats(const Weight& w, const uint8_t* codes, int64_t count, int64_t padded,
                   const Line& zeros, uint8_t* out) {
  const int64_t out_bytes = (w.bits == 8 ? 2 : 4) * kTileBytes;
  for (int64_t b = 0; b < count; ++b, codes += kTileBytes, out += out_bytes) {
    typename V::Bytes four[2];
    if (w.bits == 8) {
      __builtin_memcpy(four, codes, kTileBytes);
      if (w.offset) V::template bfloat16_codes<false>(four[0], out);
      else V::template bfloat16_codes<true>(four[0], out);
    } else {
      unpack_blocks(codes, 1, zeros, reinterpret_cast<uint8_t*>(four));
      V::bfloat16_small_codes(four[0], out);
      V::bfloat16_small_codes(four[1], out + 2 * kTileBytes);
    }
  }
  __builtin_memset(out, 0, (padded - count) * out_bytes);
}

// Inputs of one call: groups, or steps of the only one.
struct Chunk {
  int64_t group, groups, step, steps;

  bool left() const { return groups > 0 && steps > 0; }
};

// The tiles that are multiplied next.
struct Ahead {
  Chunk chunk;
  int64_t tile;
};

template <class V, After kAfter, int kRowsPerStep>
class TileLinear {
 public:
  TileLinear(const TileCall& call, const TileScratch& scratch)
      : call_(call), scratch_(scratch), blocks_(call, scratch.blocks + kBlockSums) {}

  // `count` tiles from `tile` on.
  void run(int64_t tile, int64_t count) {
    const int64_t rows = call_.rows.rows;
    for (row_ = 0; row_ < rows; row_ += kRowsAtOnce) {
      end_ = rows - row_ < kRowsAtOnce ? rows : row_ + kRowsAtOnce;
      for (Chunk chunk = first_chunk(), after; chunk.left(); chunk = after) {
        after = next_chunk(chunk);
        for (int64_t at = 0; at < count; at += 2) {
          const bool more = at + 2 < count;
          const Ahead ahead = {more ? chunk : after, tile + (more ? at + 2 : 0)};
          multiply_pair(chunk, tile + at, least(count - at, 2), at / 2, ahead);
        }
      }
    }
    blocks_.drain();
  }

 private:
  Chunk first_chunk() const {
    Chunk chunk = {0, 1, 0, call_.rows.steps};
    const int64_t steps = chunk_inputs(call_.rows) / call_.rows.depth;
    if (one_group(kAfter)) chunk.steps = least(chunk.steps, steps);
    else chunk.groups = least(call_.rows.groups, steps / chunk.steps);
    return chunk;
  }
  Chunk next_chunk(Chunk chunk) const {
    if (one_group(kAfter)) {
      chunk.step += chunk.steps;
      chunk.steps = least(chunk.steps, call_.rows.steps - chunk.step);
    } else {
      chunk.group += chunk.groups;
      chunk.groups = least(chunk.groups, call_.rows.groups - chunk.group);
    }
    return chunk;
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // One chunk of one or two tiles for the rows at hand.
  void multiply_pair(const Chunk& chunk, int64_t tile, int64_t tiles, int64_t pair,
                     const Ahead& ahead) {
    Operands at = {};
    place_ahead(ahead, chunk, at);
    at.weights[0] = at.weights[1] = weights(chunk, tile, scratch_.panel);
    if (tiles > 1) {
      at.weights[1] = weights(chunk, tile + 1, scratch_.panel + scratch_.panel_bytes);
    }
    for (int64_t row = row_; row < end_; row += kBlock) {
      int32_t* sums = scratch_.sums + (pair * scratch_.rows + row - row_) * kBlock;
      const Place place = {row, tile, tiles, sums};
      if (end_ - row > kTileRows) multiply_rows<2>(chunk, at, place);
      else multiply_rows<1>(chunk, at, place);
      for (auto& ahead : at.ahead) ahead += chunk.groups * chunk.steps * at.lines * kTileBytes;
    }
  }

  // 32 rows of one or two tiles, and the memory of their sums or totals.
  struct Place {
    int64_t row, tile, tiles;
    int32_t* sums;
  };

  // Multiplies a block for each group.
  template <int kRowTiles>
  void multiply_rows(const Chunk& chunk, Operands at, const Place& place) {
    const TileRows& rows = call_.rows;
    const bool scaled = chunk.step + chunk.steps == rows.steps;
    const int32_t* start = chunk.step > 0 ? place.sums : nullptr;
    const Output& out = call_.out;
    if (scaled && out.residual) {
      at.residual = out.residual + place.row * out.stride + place.tile * kTile - out.first;
    }
    for (int64_t group = chunk.group; group < chunk.group + chunk.groups; ++group) {
      for (int i = 0; i < kRowTiles; ++i) {
        at.rows[i] = rows.step(place.row + i * kTileRows, group, chunk.step);
      }
      const float* scales = rows.block_scales(place.row, rows.scale_groups > 1 ? group : 0);
      int32_t* sums = place.sums;
      if (!one_group(kAfter)) sums = scratch_.blocks + (turn_ ^= 1) * kBlockSums;
      float* totals = reinterpret_cast<float*>(place.sums);
      blocks_.next() = {sums,        totals, scales, place.row,  place.tile,
                        place.tiles, group,  scaled, group == 0, group + 1 == rows.groups};
      blocks_.template multiply<kRowTiles>(at, chunk.steps, start);
      for (auto& weights : at.weights) weights += chunk.steps * rows.tile_bytes();
      for (auto& ahead : at.ahead) ahead += chunk.steps * at.lines * kTileBytes;
    }
  }

  // What the steps of a chunk prefetch: equal shares of the next pair.
  void place_ahead(const Ahead& ahead, const Chunk& chunk, Operands& at) const {
    if (!ahead.chunk.left()) return;
    const Weight& w = call_.weight;
    const int64_t lines = ahead.chunk.groups * ahead.chunk.steps * call_.rows.depth * w.bits / 32;
    const int64_t steps = ceil_div(end_ - row_, kBlock) * chunk.groups * chunk.steps;
    at.lines = ceil_div(lines, steps);
    at.ahead[0] = w.codes + (ahead.tile * w.blocks + first_block(ahead.chunk)) * kTileBytes;
    at.ahead[1] = at.ahead[0] + w.blocks * kTileBytes;
  }

  int64_t first_block(const Chunk& chunk) const {
    const Weight& w = call_.weight;
    return chunk.group * w.group_blocks + chunk.step * call_.rows.depth * w.bits / 32;
  }

  // A chunk of one tile as dot_tiles() reads it: in place if it is INT8 and all of its bytes exist.
  const uint8_t* weights(const Chunk& chunk, int64_t tile, uint8_t* panel) const {
    const Weight& w = call_.weight;
    const uint8_t* codes = w.codes + tile * w.blocks * kTileBytes;
    const int64_t inputs = chunk.steps * call_.rows.depth;
    if (w.bits == 8 && !call_.rows.floats) {
      const int64_t first = first_block(chunk), blocks = inputs / 4;
      if (first + blocks <= w.blocks) return codes + first * kTileBytes;
      __builtin_memcpy(panel, codes + first * kTileBytes, (w.blocks - first) * kTileBytes);
      return panel;
    }
    for (int64_t g = 0; g < chunk.groups; ++g) {
      const int64_t group = chunk.group + g, blocks = inputs * w.bits / 32;
      const int64_t first = first_block({group, 1, chunk.step, chunk.steps});
      const int64_t count = least(blocks, w.blocks - first);
      Line zeros = {};
      fill_zeros(w, tile, group, zeros);
      const uint8_t* from = codes + first * kTileBytes;
      uint8_t* to = panel + g * chunk.steps * call_.rows.tile_bytes();
      if constexpr (of_floats(kAfter)) unpack_floats<V>(w, from, count, blocks, zeros, to);
      else unpack_blocks(from, count, zeros, to);
    }
    return panel;
  }

  const TileCall call_;
  const TileScratch& scratch_;
  Blocks<V, kAfter, kRowsPerStep> blocks_;
  int64_t row_ = 0, end_ = 0;  // the rows at hand
  int turn_ = 1;
};

template <class V, After kAfter, int kRowsPerStep>
void run_tiles(const TileCall& call, const TileScratch& scratch, int64_t tile, int64_t count) {
  TileLinear<V, kAfter, kRowsPerStep>(call, scratch).run(tile, count);
}

// kRowsPerStep is 32 divided by the steps of a block, or at least 4.
template <class V, After kAfter>
void run_groups(const TileCall& call, const TileScratch& scratch, int64_t tile, int64_t count) {
  const int64_t steps = call.rows.steps;
  if (steps == 1) run_tiles<V, kAfter, 32>(call, scratch, tile, count);
  else if (steps == 2) run_tiles<V, kAfter, 16>(call, scratch, tile, count);
  else if (steps == 4) run_tiles<V, kAfter, 8>(call, scratch, tile, count);
  else run_tiles<V, kAfter, 4>(call, scratch, tile, count);
}

// The same, for steps of three parts; rows are done before the steps are.
template <class V, After kAfter>
void run_floats(const TileCall& call, const TileScratch& scratch, int64_t tile, int64_t count) {
  if (call.rows.steps == 1) run_tiles<V, kAfter, 16>(call, scratch, tile, count);
  else if (call.rows.steps == 2) run_tiles<V, kAfter, 8>(call, scratch, tile, count);
  else run_tiles<V, kAfter, 4>(call, scratch, tile, count);
}

}  // namespace planish::PLANISH_ISA
