// Sixteen lanes in four vectors of 16 bytes, which GCC and Clang turn into what the processor has.
#pragma once

#include <cstdint>

#include "unroll.h"

namespace planish::PLANISH_ISA {

struct Vector {
  struct AnyCodes;  // whose dot_int8 takes inputs of -128, too
  static constexpr int kInt8Zero = 0;
  static constexpr bool kInt4Pairs = true;
  static constexpr int kTiles = 1;
  static constexpr int kRowsAtOnce = 4;

  using Int4 = int32_t __attribute__((vector_size(16)));
  using Uint4 = uint32_t __attribute__((vector_size(16)));
  using Float4 = float __attribute__((vector_size(16)));
  using Short8 = int16_t __attribute__((vector_size(16)));
  using Ushort8 = uint16_t __attribute__((vector_size(16)));
  using Byte16 = uint8_t __attribute__((vector_size(16)));

  struct Ints {
    Int4 at[4];
  };
  struct Floats {
    Float4 at[4];
  };
  struct Bytes {
    Byte16 at[4];
  };
  struct Four {
    Short8 even, odd;  // inputs 0 and 2 of each lane, and 1 and 3
  };

  template <class T, class F>
  PLANISH_INLINE static T make(F&& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  // The same bits as lanes of another type.
  template <class T, class X>
  PLANISH_INLINE static T as(X x) {
    return reinterpret_cast<T>(x);
  }
  template <class T>
  PLANISH_INLINE static T load16(const void* p) {
    T result;
    __builtin_memcpy(&result, p, 16);
    return result;
  }
  template <class T>
  PLANISH_INLINE static T choose(Int4 mask, T a, T b) {
    return as<T>((mask & as<Int4>(a)) | (~mask & as<Int4>(b)));
  }
  PLANISH_INLINE static Float4 all(float x) { return Float4{x, x, x, x}; }
  PLANISH_INLINE static Int4 all(int32_t x) { return Int4{x, x, x, x}; }

  static Ints ints(int32_t x) {
    return make<Ints>([&](int) PLANISH_INLINE { return all(x); });
  }
  // Of unsigned lanes, which wrap.
  static Ints subtract(Ints a, Ints b) {
    return make<Ints>(
        [&](int i) PLANISH_INLINE { return as<Int4>(as<Uint4>(a.at[i]) - as<Uint4>(b.at[i])); });
  }
  static Int4 add(Int4 a, Int4 b) { return as<Int4>(as<Uint4>(a) + as<Uint4>(b)); }
  static Ints add(Ints a, Ints b) {
    return make<Ints>([&](int i) PLANISH_INLINE { return add(a.at[i], b.at[i]); });
  }
  static Ints multiply(Ints a, Ints b) {
    return make<Ints>(
        [&](int i) PLANISH_INLINE { return as<Int4>(as<Uint4>(a.at[i]) * as<Uint4>(b.at[i])); });
  }
  static Ints max(Ints a, Ints b) {
    return make<Ints>([&](int i)
                          PLANISH_INLINE { return choose(a.at[i] > b.at[i], a.at[i], b.at[i]); });
  }
  static int32_t sum(Ints a) {
    const Int4 four = add(add(a.at[0], a.at[1]), add(a.at[2], a.at[3]));
    uint32_t total = 0;
    for (int i = 0; i < 4; ++i) total += static_cast<uint32_t>(four[i]);
    return static_cast<int32_t>(total);
  }
  static int32_t largest(Ints a) {
    int32_t lanes[16], most = a.at[0][0];
    store_ints(lanes, a);
    for (int32_t x : lanes) most = x > most ? x : most;
    return most;
  }
  template <class T>
  static Int4 widen4(const T* p) {
    return Int4{p[0], p[1], p[2], p[3]};
  }
  static Ints widen(const uint8_t* p) {
    return make<Ints>([&](int i) PLANISH_INLINE { return widen4(p + 4 * i); });
  }
  static Ints widen(const int8_t* p) {
    return make<Ints>([&](int i) PLANISH_INLINE { return widen4(p + 4 * i); });
  }
  static void narrow(int8_t* p, Ints x) {
    int32_t lanes[16];
    store_ints(lanes, x);
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(lanes[i]);
  }
  // The upper halves of the lanes, each four in the order 0 2 1 3.
  static void narrow_upper(uint16_t* p, Ints x) {
    int32_t lanes[16];
    store_ints(lanes, x);
    for (int i = 0; i < 16; ++i) {
      const int from = i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i;
      p[i] = static_cast<uint16_t>(static_cast<uint32_t>(lanes[from]) >> 16);
    }
  }
  // Codes of four inputs of each lane as bfloat16s: a line of inputs 0 and 2, and one of 1 and 3.
  // They are -128..127, or 0..255.
  template <bool kSigned>
  static void bfloat16_codes(const Bytes& x, uint8_t* out) {
    uint8_t codes[64];
    __builtin_memcpy(codes, &x, 64);
    for (int i = 0; i < 64; ++i) {
      uint32_t bits;
      const float code = kSigned ? static_cast<int8_t>(codes[i]) : codes[i];
      __builtin_memcpy(&bits, &code, 4);
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);
      __builtin_memcpy(out + i % 2 * 64 + i / 4 * 4 + i % 4 / 2 * 2, &upper, 2);
    }
  }
  static void bfloat16_small_codes(const Bytes& x, uint8_t* out) { bfloat16_codes<true>(x, out); }
  static Ints load_ints(const void* p) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    return make<Ints>([&](int i) PLANISH_INLINE { return load16<Int4>(bytes + 16 * i); });
  }
  static void store_ints(int32_t* p, const Ints& x) { __builtin_memcpy(p, &x, sizeof(x)); }
  template <int kBits>
  static Ints shift_left(Ints a) {
    return make<Ints>([&](int i) PLANISH_INLINE { return as<Int4>(as<Uint4>(a.at[i]) << kBits); });
  }
  template <int kBits>
  static Ints shift_right(Ints a) {  // keeps the sign
    return make<Ints>([&](int i) PLANISH_INLINE { return a.at[i] >> kBits; });
  }
  static Ints bits_and(Ints a, Ints b) {
    return make<Ints>([&](int i) PLANISH_INLINE { return a.at[i] & b.at[i]; });
  }

  static Bytes int8_weights(const uint8_t* p) {
    return make<Bytes>([&](int i) PLANISH_INLINE { return load16<Byte16>(p + 16 * i); });
  }
  static void int4_weights(const uint8_t* p, Bytes& first, Bytes& second) {
    const Bytes both = int8_weights(p);
    first = make<Bytes>([&](int i) PLANISH_INLINE { return both.at[i] & 15; });
    second = make<Bytes>([&](int i) PLANISH_INLINE { return both.at[i] >> 4; });
  }
  static Four four(const int8_t* p) {
    const int16_t a = p[0], b = p[1], c = p[2], d = p[3];
    return {Short8{a, c, a, c, a, c, a, c}, Short8{b, d, b, d, b, d, b, d}};
  }
  // Each pair of bytes: the first, and the second, with their signs.
  static Short8 even(Byte16 w) { return as<Short8>(as<Ushort8>(w) << 8) >> 8; }
  static Short8 odd(Byte16 w) { return as<Short8>(w) >> 8; }
  // The sums of the two halves of each lane.
  static Int4 halves(Short8 x) {
    return add(as<Int4>(as<Uint4>(x) << 16) >> 16, as<Int4>(x) >> 16);
  }
  // Pairs of products fit 16 bits: 2 * 128 * 127, as no code of x is -128.
  static Short8 pairs(Byte16 w, const Four& x) { return even(w) * x.even + odd(w) * x.odd; }
  static void dot_int8(Ints& sum, const Bytes& w, const Four& x) {
    sum =
        make<Ints>([&](int i) PLANISH_INLINE { return add(sum.at[i], halves(pairs(w.at[i], x))); });
  }
  // Sums of four products of INT4 codes, 0..15, still fit.
  static void dot_int4(Ints& sum, const Bytes& w, const Four& x, const Bytes& second_w,
                       const Four& second_x) {
    sum = make<Ints>([&](int i) PLANISH_INLINE {
      return add(sum.at[i], halves(pairs(w.at[i], x) + pairs(second_w.at[i], second_x)));
    });
  }
  static Bytes signed_bytes(const int8_t* p) {
    return int8_weights(reinterpret_cast<const uint8_t*>(p));
  }
  static void dot_positive(Ints& sum, const Bytes& w, const Four& x) {  // x is 0..127, w signed
    dot_int8(sum, w, x);
  }

  static Floats floats(float x) {
    return make<Floats>([&](int) PLANISH_INLINE { return all(x); });
  }
  static Floats to_floats(Ints x) {
    return make<Floats>([&](int i)
                            PLANISH_INLINE { return __builtin_convertvector(x.at[i], Float4); });
  }
  // Half to even: a float of 2^23 or more is whole, and to add it to a smaller one rounds that.
  static Float4 round4(Float4 x) {
    const Int4 sign = as<Int4>(x) & INT32_MIN;
    const Float4 size = as<Float4>(as<Int4>(x) & INT32_MAX), whole = all(8388608.0f);
    const Float4 rounded = choose<Float4>(size < whole, (size + whole) - whole, size);
    return as<Float4>(as<Int4>(rounded) | sign);
  }
  static Ints to_ints(Floats x) {  // half to even; what no int32 holds becomes the smallest
    return make<Ints>([&](int i) PLANISH_INLINE {
      const Float4 value = x.at[i], end = all(2147483648.0f);
      const Int4 fits = (value > -end) & (value < end);
      const Float4 whole = choose<Float4>(fits, round4(value), all(0.0f));
      return choose(fits, __builtin_convertvector(whole, Int4), all(INT32_MIN));
    });
  }
  static Ints bits(Floats x) {
    return make<Ints>([&](int i) PLANISH_INLINE { return as<Int4>(x.at[i]); });
  }
  static Floats from_bits(Ints x) {
    return make<Floats>([&](int i) PLANISH_INLINE { return as<Float4>(x.at[i]); });
  }
  static Floats load(const float* p) {
    return make<Floats>([&](int i) PLANISH_INLINE { return load16<Float4>(p + 4 * i); });
  }
  static Float4 half4(const uint16_t* p) {  // IEEE binary16
    const Int4 half = widen4(p), exponent = half >> 10 & 31, fraction = half & 1023;
    const Int4 sign = as<Int4>(as<Uint4>(half & 0x8000) << 16);
    const Float4 tiny = __builtin_convertvector(fraction, Float4) * all(5.9604644775390625e-8f);
    const Int4 wide = choose(exponent == 31, exponent | 255, exponent + 112);
    const Int4 normal = as<Int4>(as<Uint4>(wide) << 23) | fraction << 13;
    return as<Float4>(sign | choose(exponent == 0, as<Int4>(tiny), normal));
  }
  static Floats load_half(const uint16_t* p) {
    return make<Floats>([&](int i) PLANISH_INLINE { return half4(p + 4 * i); });
  }
  static Floats load_part(const float* p, int64_t n) {
    float lanes[16] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static void store(float* p, const Floats& x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static void stream(float* p, const Floats& x) { store(p, x); }
  static void end_streams() {}
  static void store_part(float* p, const Floats& x, int64_t n) {
    float lanes[16];
    store(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static Floats add(Floats a, Floats b) {
    return make<Floats>([&](int i) PLANISH_INLINE { return a.at[i] + b.at[i]; });
  }
  static Floats subtract(Floats a, Floats b) {
    return make<Floats>([&](int i) PLANISH_INLINE { return a.at[i] - b.at[i]; });
  }
  static Floats multiply(Floats a, Floats b) {
    return make<Floats>([&](int i) PLANISH_INLINE { return a.at[i] * b.at[i]; });
  }
  static Floats divide(Floats a, Floats b) {
    return make<Floats>([&](int i) PLANISH_INLINE { return a.at[i] / b.at[i]; });
  }
  static Floats fma(Floats a, Floats b, Floats c) { return add(multiply(a, b), c); }
  static Floats max(Floats a, Floats b) {  // the second where one is NaN
    return make<Floats>([&](int i)
                            PLANISH_INLINE { return choose(a.at[i] > b.at[i], a.at[i], b.at[i]); });
  }
  static Floats min(Floats a, Floats b) {
    return make<Floats>([&](int i)
                            PLANISH_INLINE { return choose(a.at[i] < b.at[i], a.at[i], b.at[i]); });
  }
  static bool any_above(Floats a, Floats b) {
    const Ints above = make<Ints>([&](int i) PLANISH_INLINE { return a.at[i] > b.at[i]; });
    return sum(above) != 0;  // each lane is 0 or -1
  }
  static Floats round(Floats x) {
    return make<Floats>([&](int i) PLANISH_INLINE { return round4(x.at[i]); });
  }
  static float sum(const Floats& x) {
    float lanes[16], total = 0.0f;
    store(lanes, x);
    for (float value : lanes) total += value;
    return total;
  }
  static float largest(const Floats& x) {
    float lanes[16];
    store(lanes, x);
    float most = lanes[0];
    for (float value : lanes) most = value > most ? value : most;
    return most;
  }
  template <int kAt>
  static Floats nibbles(Ints x) {
    return to_floats(make<Ints>([&](int i) PLANISH_INLINE { return x.at[i] >> kAt & 15; }));
  }
  template <int kAt>
  static Floats centred_nibbles(Ints x) {
    return to_floats(make<Ints>([&](int i) PLANISH_INLINE { return (x.at[i] >> kAt & 15) - 8; }));
  }
};

// Two products of -128 and -128 overflow 16 bits, so each is widened.
struct Vector::AnyCodes : Vector {
  static void dot_int8(Ints& sum, const Bytes& w, const Four& x) {
    sum = make<Ints>([&](int i) PLANISH_INLINE {
      const Int4 evens = halves(even(w.at[i]) * x.even);
      return Vector::add(sum.at[i], Vector::add(evens, halves(odd(w.at[i]) * x.odd)));
    });
  }
};

}  // namespace planish::PLANISH_ISA
