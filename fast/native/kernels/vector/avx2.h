// Sixteen lanes in two AVX2 registers; byte products by AVX-VNNI where the compiler is allowed it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "unroll.h"

namespace planish::PLANISH_ISA {

struct Vector {
#if defined(__AVXVNNI__)
  using AnyCodes = Vector;               // whose dot_int8 takes inputs of -128, too
  static constexpr int kInt8Zero = 128;  // vpdpbusd wants one unsigned side: weights + 128
  static constexpr bool kInt4Pairs = false;
#else
  struct AnyCodes;
  static constexpr int kInt8Zero = 0;
  static constexpr bool kInt4Pairs = true;  // dot_int4 takes eight inputs: fewer instructions
#endif
  static constexpr int kTiles = 1;
  static constexpr int kRowsAtOnce = 4;  // 4 rows x 1 tile of sums: 8 of 16 registers

  struct Ints {
    __m256i lo, hi;
  };
  struct Floats {
    __m256 lo, hi;
  };
  using Bytes = Ints;
  using Four = __m256i;

  static __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static Ints subtract(Ints a, Ints b) {
    return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
  }
  static Ints add(Ints a, Ints b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
  }
  static Ints multiply(Ints a, Ints b) {
    return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
  }
  static Ints max(Ints a, Ints b) {
    return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
  }
  static int32_t sum(Ints a) {
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(a.lo, a.hi));
    uint32_t total = 0;
    for (int32_t lane : lanes) total += static_cast<uint32_t>(lane);
    return static_cast<int32_t>(total);
  }
  static int32_t largest(Ints a) {
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(a.lo, a.hi));
    int32_t most = lanes[0];
    for (int32_t lane : lanes) most = lane > most ? lane : most;
    return most;
  }
  static __m128i eight_bytes(const void* p) {
    return _mm_loadl_epi64(static_cast<const __m128i*>(p));
  }
  static Ints widen(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(eight_bytes(p)), _mm256_cvtepu8_epi32(eight_bytes(p + 8))};
  }
  static Ints widen(const int8_t* p) {
    return {_mm256_cvtepi8_epi32(eight_bytes(p)), _mm256_cvtepi8_epi32(eight_bytes(p + 8))};
  }
  static void narrow(int8_t* p, Ints x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  static Ints load_ints(const void* p) {
    return {load256(p), load256(static_cast<const char*>(p) + 32)};
  }
  static void store_ints(int32_t* p, Ints x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.hi);
  }
  template <int kBits>
  static Ints shift_left(Ints a) {
    return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
  }
  template <int kBits>
  static Ints shift_right(Ints a) {  // keeps the sign
    return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)};
  }
  static Ints bits_and(Ints a, Ints b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
  }

  static Bytes int8_weights(const uint8_t* p) {
    Bytes w = load_ints(p);
#if defined(__AVXVNNI__)
    const __m256i flip = _mm256_set1_epi8(-128);
    w = {_mm256_xor_si256(w.lo, flip), _mm256_xor_si256(w.hi, flip)};
#endif
    return w;
  }
  static void int4_weights(const uint8_t* p, Bytes& first, Bytes& second) {
    const Ints both = load_ints(p), mask = {_mm256_set1_epi8(15), _mm256_set1_epi8(15)};
    first = bits_and(both, mask);
    second = bits_and({_mm256_srli_epi16(both.lo, 4), _mm256_srli_epi16(both.hi, 4)}, mask);
  }
  static Four four(const int8_t* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
#if defined(__AVXVNNI__)
  // Written as assembly because g++ 12 copies the sums of its intrinsic through the stack.
  static void dot(__m256i& sum, __m256i w, __m256i x) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
  }
  static void dot_int8(Ints& sum, const Bytes& w, Four x) {
    dot(sum.lo, w.lo, x);
    dot(sum.hi, w.hi, x);
  }
  static void dot_int4(Ints& sum, const Bytes& w, Four x) { dot_int8(sum, w, x); }
#else
  // Pairs of products fit 16 bits: 2 * 128 * 127 and 2 * 15 * 127, as no code of x is -128.
  static void dot(__m256i& sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void dot_int8(Ints& sum, const Bytes& w, Four x) {
    dot(sum.lo, _mm256_abs_epi8(w.lo), _mm256_sign_epi8(x, w.lo));
    dot(sum.hi, _mm256_abs_epi8(w.hi), _mm256_sign_epi8(x, w.hi));
  }
  // Sums of four such products of INT4 codes still fit 16 bits.
  static void dot_four(__m256i& sum, __m256i w, Four x, __m256i second_w, Four second_x) {
    const __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(second_w, second_x));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void dot_int4(Ints& sum, const Bytes& w, Four x, const Bytes& second_w, Four second_x) {
    dot_four(sum.lo, w.lo, x, second_w.lo, second_x);
    dot_four(sum.hi, w.hi, x, second_w.hi, second_x);
  }
#endif

  static Bytes signed_bytes(const int8_t* p) { return load_ints(p); }
  static void dot_positive(Ints& sum, const Bytes& w, Four x) {  // x is 0..127, and w signed
    dot(sum.lo, x, w.lo);
    dot(sum.hi, x, w.hi);
  }

  static Floats floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
  static Ints to_ints(Floats x) {  // half to even
    return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)};
  }
  static Ints bits(Floats x) { return {_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi)}; }
  static Floats from_bits(Ints x) { return {_mm256_castsi256_ps(x.lo), _mm256_castsi256_ps(x.hi)}; }
  static Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Floats load_half(const uint16_t* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static Ints first_lanes(int64_t n) {
    const __m256i count = _mm256_set1_epi32(static_cast<int32_t>(n));
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i upper = _mm256_add_epi32(index, _mm256_set1_epi32(8));
    return {_mm256_cmpgt_epi32(count, index), _mm256_cmpgt_epi32(count, upper)};
  }
  static Floats load_part(const float* p, int64_t n) {
    const Ints mask = first_lanes(n);
    return {_mm256_maskload_ps(p, mask.lo), _mm256_maskload_ps(p + 8, mask.hi)};
  }
  static void store(float* p, Floats x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
  }
  static void stream(float* p, Floats x) { store(p, x); }
  static void end_streams() {}
  static void store_part(float* p, Floats x, int64_t n) {
    const Ints mask = first_lanes(n);
    _mm256_maskstore_ps(p, mask.lo, x.lo);
    _mm256_maskstore_ps(p + 8, mask.hi, x.hi);
  }
  static Floats add(Floats a, Floats b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
  }
  static Floats subtract(Floats a, Floats b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
  }
  static Floats multiply(Floats a, Floats b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
  }
  static Floats divide(Floats a, Floats b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
  }
  static Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static Floats max(Floats a, Floats b) {  // the second where one is NaN
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
  }
  static Floats min(Floats a, Floats b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
  }
  static bool any_above(Floats a, Floats b) {
    const __m256 lo = _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(lo, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))) != 0;
  }
  static Floats round(Floats x) {  // half to even
    return {_mm256_round_ps(x.lo, 0x08), _mm256_round_ps(x.hi, 0x08)};
  }
  static float sum(Floats x) {
    float lanes[8];
    _mm256_storeu_ps(lanes, _mm256_add_ps(x.lo, x.hi));
    float total = 0.0f;
    for (float lane : lanes) total += lane;
    return total;
  }
  static float largest(Floats x) {
    float lanes[8];
    _mm256_storeu_ps(lanes, _mm256_max_ps(x.lo, x.hi));
    float most = lanes[0];
    for (float lane : lanes) most = lane > most ? lane : most;
    return most;
  }
  // The four bits from kAt on become the lowest of 2^23's mantissa, or those above them of a
  // smaller power's: 2^n + code - (2^n + less) is exact, and cheaper than a conversion.
  template <int kAt>
  static Floats nibbles_less(Ints x, float less) {
    if constexpr (kAt > 16) {
      return nibbles_less<kAt - 12>({_mm256_srli_epi32(x.lo, 12), _mm256_srli_epi32(x.hi, 12)},
                                    less);
    } else {
      const Ints mask = ints(15 << kAt), power = ints((127 + 23 - kAt) << 23);
      x = bits_and(x, mask);
      const Ints sum = {_mm256_or_si256(x.lo, power.lo), _mm256_or_si256(x.hi, power.hi)};
      return subtract(from_bits(sum), floats(static_cast<float>(1 << (23 - kAt)) + less));
    }
  }
  template <int kAt>
  static Floats nibbles(Ints x) {
    return nibbles_less<kAt>(x, 0.0f);
  }
  template <int kAt>
  static Floats centred_nibbles(Ints x) {
    return nibbles_less<kAt>(x, 8.0f);
  }
};

#if !defined(__AVXVNNI__)
// Inputs of -128 overflow 16 bits, so even and odd bytes are widened and multiplied apart.
struct Vector::AnyCodes : Vector {
  static __m256i even(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
  static __m256i odd(__m256i x) { return _mm256_srai_epi16(x, 8); }
  static void dot(__m256i& sum, __m256i w, __m256i x) {
    const __m256i evens = _mm256_madd_epi16(even(w), even(x));
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(evens, _mm256_madd_epi16(odd(w), odd(x))));
  }
  static void dot_int8(Ints& sum, const Bytes& w, Four x) {
    dot(sum.lo, w.lo, x);
    dot(sum.hi, w.hi, x);
  }
};
#endif

}  // namespace planish::PLANISH_ISA
