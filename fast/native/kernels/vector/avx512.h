// Sixteen lanes in one AVX-512 register; four byte products a lane by VNNI's vpdpbusd.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace planish::PLANISH_ISA {

struct Vector {
  using AnyCodes = Vector;               // whose dot_int8 takes inputs of -128, too
  static constexpr int kInt8Zero = 128;  // vpdpbusd wants one unsigned side: weights + 128
  static constexpr bool kInt4Pairs = false;
  static constexpr int kTiles = 2;  // 8 rows x 2 tiles of sums, in 32 registers
  static constexpr int kRowsAtOnce = 8;

  using Ints = __m512i;
  using Floats = __m512;
  using Bytes = __m512i;
  using Four = __m512i;

  static Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
  static Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static int32_t sum(Ints a) { return _mm512_reduce_add_epi32(a); }
  static int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a); }
  static Ints widen(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Ints widen(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void narrow(int8_t* p, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  // The upper halves of the lanes, each four in the order 0 2 1 3.
  static void narrow_upper(uint16_t* p, Ints x) {
    const __m512i upper = _mm512_srli_epi32(_mm512_shuffle_epi32(x, _MM_PERM_DBCA), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(upper));
  }
  // Codes of four inputs of each lane as bfloat16s: a line of inputs 0 and 2, and one of 1 and 3.
  // They are -128..127, or 0..255.
  template <bool kSigned>
  static void bfloat16_codes(Bytes x, uint8_t* out) {
    const auto convert = [&](__m512i first, __m512i second) {
      const __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(first));
      const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(second));
      return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high);
    };
    const auto code = [&](int at) {
      const __m512i upper = _mm512_slli_epi32(x, 24 - at);
      return kSigned ? _mm512_srai_epi32(upper, 24) : _mm512_srli_epi32(upper, 24);
    };
    _mm512_storeu_si512(out, convert(code(0), code(16)));
    _mm512_storeu_si512(out + 64, convert(code(8), code(24)));
  }
  // The same for codes in -15..15.
  static void bfloat16_small_codes(Bytes x, uint8_t* out) {
    alignas(64) static constexpr uint16_t kTable[32] = {
        0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0,      0xc170, 0xc160, 0xc150, 0xc140, 0xc130,
        0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
    const __m512i table = _mm512_load_si512(kTable);  // 0..15, -16..-1: five bits decide
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(x, table));
    _mm512_storeu_si512(out + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 8), table));
  }
  static Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
  static void store_ints(int32_t* p, Ints x) { _mm512_storeu_si512(p, x); }
  template <int kBits>
  static Ints shift_left(Ints a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Ints shift_right(Ints a) {  // keeps the sign
    return _mm512_srai_epi32(a, kBits);
  }
  static Ints bits_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }

  static Bytes int8_weights(const uint8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
  }
  static void int4_weights(const uint8_t* p, Bytes& first, Bytes& second) {
    const __m512i mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(p);
    first = _mm512_and_si512(both, mask);
    second = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
  static Four four(const int8_t* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  // Written as assembly because g++ 12 copies the sums of its intrinsic through the stack.
  static void dot_int8(Ints& sum, Bytes w, Four x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  }
  static void dot_int4(Ints& sum, Bytes w, Four x) { dot_int8(sum, w, x); }
  static Bytes signed_bytes(const int8_t* p) { return _mm512_loadu_si512(p); }
  static void dot_positive(Ints& sum, Bytes w, Four x) {  // x is 0..127, and w signed
    dot_int8(sum, x, w);
  }

  static Floats floats(float x) { return _mm512_set1_ps(x); }
  static Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
  static Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }  // half to even
  static Ints bits(Floats x) { return _mm512_castps_si512(x); }
  static Floats from_bits(Ints x) { return _mm512_castsi512_ps(x); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats load_part(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
  // Past the caches, without reading what was there; p is aligned to 64. Other threads see it after
  // end_streams().
  static void stream(float* p, Floats x) { _mm512_stream_ps(p, x); }
  static void end_streams() { _mm_sfence(); }
  static void store_part(float* p, Floats x, int64_t n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
  }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static bool any_above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
  static Floats round(Floats x) { return _mm512_roundscale_ps(x, 0x08); }  // half to even
  static float sum(Floats x) { return _mm512_reduce_add_ps(x); }
  static float largest(Floats x) { return _mm512_reduce_max_ps(x); }
  // The float values 0..15 of the 4 bits from kAt on of each lane.
  template <int kAt>
  static Floats nibbles(Ints x) {
    const Floats table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(shift_right<kAt>(x), table);
  }
  // The float values -8..7 of the same.
  template <int kAt>
  static Floats centred_nibbles(Ints x) {
    const Floats table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(shift_right<kAt>(x), table);
  }
};

}  // namespace planish::PLANISH_ISA
