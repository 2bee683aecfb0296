// Sixteen lanes as an array: C++ that any compiler accepts.
#pragma once

#include <cmath>
#include <cstdint>

#include "unroll.h"

namespace planish::PLANISH_ISA {

struct Vector {
  using AnyCodes = Vector;  // whose dot_int8 takes inputs of -128, too
  static constexpr int kInt8Zero = 0;
  static constexpr bool kInt4Pairs = false;
  static constexpr int kTiles = 1;
  static constexpr int kRowsAtOnce = 8;

  struct Ints {
    int32_t at[16];
  };
  struct Floats {
    float at[16];
  };
  struct Bytes {
    int8_t at[64];
  };
  struct Four {
    int8_t at[4];
  };

  template <class T, class F>
  static T make(F&& f) {
    T result;
    for (int i = 0; i < 16; ++i) result.at[i] = f(i);
    return result;
  }

  static Ints ints(int32_t x) {
    return make<Ints>([&](int) { return x; });
  }
  static int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
  static Ints subtract(Ints a, Ints b) {
    return make<Ints>([&](int i) { return wrap(uint32_t(a.at[i]) - uint32_t(b.at[i])); });
  }
  static Ints add(Ints a, Ints b) {
    return make<Ints>([&](int i) { return wrap(uint32_t(a.at[i]) + uint32_t(b.at[i])); });
  }
  static Ints multiply(Ints a, Ints b) {
    return make<Ints>([&](int i) { return wrap(uint32_t(a.at[i]) * uint32_t(b.at[i])); });
  }
  static Ints max(Ints a, Ints b) {
    return make<Ints>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static int32_t sum(Ints a) {
    uint32_t total = 0;
    for (int32_t x : a.at) total += uint32_t(x);
    return wrap(total);
  }
  static int32_t largest(Ints a) {
    int32_t most = a.at[0];
    for (int32_t x : a.at) most = x > most ? x : most;
    return most;
  }
  static Ints widen(const uint8_t* p) {
    return make<Ints>([&](int i) { return p[i]; });
  }
  static Ints widen(const int8_t* p) {
    return make<Ints>([&](int i) { return p[i]; });
  }
  static void narrow(int8_t* p, Ints x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.at[i]);
  }
  // The upper halves of the lanes, each four in the order 0 2 1 3.
  static void narrow_upper(uint16_t* p, Ints x) {
    for (int i = 0; i < 16; ++i) {
      const int from = i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i;
      p[i] = static_cast<uint16_t>(uint32_t(x.at[from]) >> 16);
    }
  }
  // Codes of four inputs of each lane as bfloat16s: a line of inputs 0 and 2, and one of 1 and 3.
  // They are -128..127, or 0..255.
  template <bool kSigned>
  static void bfloat16_codes(const Bytes& x, uint8_t* out) {
    for (int i = 0; i < 64; ++i) {
      uint32_t bits;
      const float code = kSigned ? x.at[i] : static_cast<uint8_t>(x.at[i]);
      __builtin_memcpy(&bits, &code, 4);
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);
      __builtin_memcpy(out + i % 2 * 64 + i / 4 * 4 + i % 4 / 2 * 2, &upper, 2);
    }
  }
  static void bfloat16_small_codes(const Bytes& x, uint8_t* out) { bfloat16_codes<true>(x, out); }
  static Ints load_ints(const void* p) {
    Ints result;
    __builtin_memcpy(&result, p, sizeof(result));
    return result;
  }
  static void store_ints(int32_t* p, const Ints& x) { __builtin_memcpy(p, &x, sizeof(x)); }
  template <int kBits>
  static Ints shift_left(Ints a) {
    return make<Ints>([&](int i) { return wrap(uint32_t(a.at[i]) << kBits); });
  }
  template <int kBits>
  static Ints shift_right(Ints a) {
    return make<Ints>([&](int i) { return a.at[i] >> kBits; });
  }
  static Ints bits_and(Ints a, Ints b) {
    return make<Ints>([&](int i) { return a.at[i] & b.at[i]; });
  }

  static Bytes int8_weights(const uint8_t* p) {
    Bytes result;
    __builtin_memcpy(&result, p, sizeof(result));
    return result;
  }
  static void int4_weights(const uint8_t* p, Bytes& first, Bytes& second) {
    for (int i = 0; i < 64; ++i) {
      first.at[i] = static_cast<int8_t>(p[i] & 15);
      second.at[i] = static_cast<int8_t>(p[i] >> 4);
    }
  }
  static Four four(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static void dot_int8(Ints& sum, const Bytes& w, Four x) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) sum.at[i] += w.at[4 * i + j] * x.at[j];
    }
  }
  static void dot_int4(Ints& sum, const Bytes& w, Four x) { dot_int8(sum, w, x); }
  static Bytes signed_bytes(const int8_t* p) {
    return int8_weights(reinterpret_cast<const uint8_t*>(p));
  }
  static void dot_positive(Ints& sum, const Bytes& w, Four x) {  // x is 0..127, and w signed
    dot_int8(sum, w, x);
  }

  static Floats floats(float x) {
    return make<Floats>([&](int) { return x; });
  }
  static Floats to_floats(Ints x) {
    return make<Floats>([&](int i) { return static_cast<float>(x.at[i]); });
  }
  static Ints to_ints(Floats x) {  // half to even; what no int32 holds becomes the smallest
    return make<Ints>([&](int i) {
      const bool fits = x.at[i] > -2147483648.0f && x.at[i] < 2147483648.0f;
      return fits ? static_cast<int32_t>(std::nearbyint(x.at[i])) : INT32_MIN;
    });
  }
  static Ints bits(Floats x) { return load_ints(x.at); }
  static Floats from_bits(Ints x) { return load(reinterpret_cast<const float*>(x.at)); }
  static Floats load(const float* p) {
    Floats result;
    __builtin_memcpy(&result, p, sizeof(result));
    return result;
  }
  static float half(uint16_t bits) {  // IEEE binary16
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31;
    const uint32_t fraction = bits & 1023;
    if (exponent == 0) {
      const float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
      return sign ? -value : value;
    }
    const uint32_t wide = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float value;
    __builtin_memcpy(&value, &wide, 4);
    return value;
  }
  static Floats load_half(const uint16_t* p) {
    return make<Floats>([&](int i) { return half(p[i]); });
  }
  static Floats load_part(const float* p, int64_t n) {
    return make<Floats>([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static void stream(float* p, Floats x) { store(p, x); }
  static void end_streams() {}
  static void store_part(float* p, Floats x, int64_t n) {
    for (int i = 0; i < n; ++i) p[i] = x.at[i];
  }
  static Floats add(Floats a, Floats b) {
    return make<Floats>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Floats subtract(Floats a, Floats b) {
    return make<Floats>([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Floats multiply(Floats a, Floats b) {
    return make<Floats>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Floats divide(Floats a, Floats b) {
    return make<Floats>([&](int i) { return a.at[i] / b.at[i]; });
  }
  static Floats fma(Floats a, Floats b, Floats c) { return add(multiply(a, b), c); }
  static Floats max(Floats a, Floats b) {  // the second where one is NaN
    return make<Floats>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Floats min(Floats a, Floats b) {
    return make<Floats>([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static bool any_above(Floats a, Floats b) {
    for (int i = 0; i < 16; ++i) {
      if (a.at[i] > b.at[i]) return true;
    }
    return false;
  }
  static Floats round(Floats x) {
    return make<Floats>([&](int i) { return std::nearbyint(x.at[i]); });
  }
  static float sum(Floats x) {
    float total = 0.0f;
    for (float value : x.at) total += value;
    return total;
  }
  static float largest(Floats x) {
    float most = x.at[0];
    for (float value : x.at) most = value > most ? value : most;
    return most;
  }
  template <int kAt>
  static Floats nibbles(Ints x) {
    return make<Floats>([&](int i) { return static_cast<float>(x.at[i] >> kAt & 15); });
  }
  template <int kAt>
  static Floats centred_nibbles(Ints x) {
    return make<Floats>([&](int i) { return static_cast<float>((x.at[i] >> kAt & 15) - 8); });
  }
};

}  // namespace planish::PLANISH_ISA
