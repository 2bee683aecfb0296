// The matrix tiles of Intel AMX: eight registers of up to 16 rows of up to 64 bytes.
//
// Six functions that are one instruction each, between configure_tiles() and release_tiles(). They
// are written as assembly because the compilers' intrinsics are wrong or do not compile in
// templates: g++ 12 deletes stores to memory that a tile then loads, and drops a part of the
// configuration (gcc.gnu.org bug 122446). With PLANISH_TILES_EMULATED the same functions work on
// memory, on any processor; they abort where the processor would raise an exception.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "../vector/unroll.h"

#ifndef PLANISH_TILES_EMULATED
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace planish::PLANISH_ISA {

// What ldtilecfg reads: the shape of each tile, in palette 1.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int height, int64_t width) {
    rows[tile] = static_cast<uint8_t>(height);
    row_bytes[tile] = static_cast<uint16_t>(width);
  }
};
static_assert(sizeof(TileConfig) == 64);

#ifndef PLANISH_TILES_EMULATED

// Linux gives tiles to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
// It refuses on processors and hypervisors without them, and where a thread's signal stack is too
// small to hold them (docs.kernel.org/arch/x86/xstate.html).
inline bool may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

PLANISH_INLINE inline void configure_tiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config));
}
PLANISH_INLINE inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

// Tile kTile = its rows at p, p + stride, ..
template <int kTile>
PLANISH_INLINE inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
PLANISH_INLINE inline void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
PLANISH_INLINE inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// sum[m][n] += rows[m][4 k + i] * weights[k][4 n + i] over k and i: int8 to int32, which wraps.
template <int kSum, int kRows, int kWeights>
PLANISH_INLINE inline void dot_tiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRows), "i"(kWeights));
}

// The same for bfloat16s: sum[m][n] += even + odd, two chains of fused additions from 0 over k:
// even of rows[m][2 k] * weights[k][2 n], odd of rows[m][2 k + 1] * weights[k][2 n + 1]. Denormal
// floats count as 0.
template <int kSum, int kRows, int kWeights>
PLANISH_INLINE inline void dot_float_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRows), "i"(kWeights));
}

#else

inline bool may_use_tiles() { return true; }

// The tiles of one thread.
struct EmulatedTiles {
  bool configured;
  TileConfig config;
  uint8_t data[8][16][64];

  int rows(int tile) const { return config.rows[tile]; }
  int row_bytes(int tile) const { return config.row_bytes[tile]; }
  void require(bool good) const {
    if (!configured || !good) std::abort();
  }
};

inline EmulatedTiles& tiles() {
  static thread_local EmulatedTiles one = {};
  return one;
}

inline void configure_tiles(const TileConfig& config) {
  EmulatedTiles& t = tiles();
  __builtin_memset(t.data, 0, sizeof(t.data));
  t.config = config;
  t.configured = config.palette == 1 && config.start_row == 0;
  for (int i = 0; i < 8; ++i) t.require(t.rows(i) <= 16 && t.row_bytes(i) <= 64);
}

// What is read afterwards is no number that a sum would hide.
inline void release_tiles() {
  EmulatedTiles& t = tiles();
  t.configured = false;
  __builtin_memset(t.data, 0x7b, sizeof(t.data));
}

template <int kTile>
void load_tile(const void* p, int64_t stride) {
  EmulatedTiles& t = tiles();
  t.require(t.rows(kTile) > 0);
  __builtin_memset(t.data[kTile], 0, sizeof(t.data[kTile]));
  const uint8_t* from = static_cast<const uint8_t*>(p);
  for (int m = 0; m < t.rows(kTile); ++m) {
    __builtin_memcpy(t.data[kTile][m], from + m * stride, t.row_bytes(kTile));
  }
}

template <int kTile>
void store_tile(void* p, int64_t stride) {
  const EmulatedTiles& t = tiles();
  t.require(t.rows(kTile) > 0);
  uint8_t* to = static_cast<uint8_t*>(p);
  for (int m = 0; m < t.rows(kTile); ++m) {
    __builtin_memcpy(to + m * stride, t.data[kTile][m], t.row_bytes(kTile));
  }
}

template <int kTile>
void zero_tile() {
  EmulatedTiles& t = tiles();
  t.require(t.rows(kTile) > 0);
  __builtin_memset(t.data[kTile], 0, sizeof(t.data[kTile]));
}

template <int kSum, int kRows, int kWeights>
void dot_tiles() {
  EmulatedTiles& t = tiles();
  t.require(t.rows(kSum) == t.rows(kRows) && t.row_bytes(kSum) == t.row_bytes(kWeights));
  t.require(t.row_bytes(kRows) == 4 * t.rows(kWeights));
  for (int m = 0; m < t.rows(kSum); ++m) {
    uint32_t sum[16];
    __builtin_memcpy(sum, t.data[kSum][m], 64);
    for (int k = 0; k < t.rows(kWeights); ++k) {
      for (int i = 0; i < 64; ++i) {
        const int a = static_cast<int8_t>(t.data[kRows][m][4 * k + i % 4]);
        const int b = static_cast<int8_t>(t.data[kWeights][k][i]);
        sum[i / 4] += static_cast<uint32_t>(a * b);
      }
    }
    __builtin_memcpy(t.data[kSum][m], sum, 64);
  }
}

inline float without_denormals(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

// The bfloat16 at p.
inline float bfloat16(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0]) << 16 | static_cast<uint32_t>(p[1]) << 24;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return without_denormals(x);
}

template <int kSum, int kRows, int kWeights>
void dot_float_tiles() {
  EmulatedTiles& t = tiles();
  t.require(t.rows(kSum) == t.rows(kRows) && t.row_bytes(kSum) == t.row_bytes(kWeights));
  t.require(t.row_bytes(kRows) == 4 * t.rows(kWeights));
  for (int m = 0; m < t.rows(kSum); ++m) {
    float sum[16];
    __builtin_memcpy(sum, t.data[kSum][m], 64);
    for (int n = 0; n < t.row_bytes(kSum) / 4; ++n) {
      float chain[2] = {0.0f, 0.0f};  // of even and odd inputs
      for (int k = 0; k < t.rows(kWeights); ++k) {
        for (int i = 0; i < 2; ++i) {
          const float a = bfloat16(&t.data[kRows][m][4 * k + 2 * i]);
          const float b = bfloat16(&t.data[kWeights][k][4 * n + 2 * i]);
          chain[i] = without_denormals(std::fma(a, b, chain[i]));
        }
      }
      const float added = without_denormals(chain[0] + chain[1]);
      sum[n] = without_denormals(without_denormals(sum[n]) + added);
    }
    __builtin_memcpy(t.data[kSum][m], sum, 64);
  }
}

#endif

}  // namespace planish::PLANISH_ISA
