// Sixteen lanes in four NEON registers; four byte products a lane by sdot.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "unroll.h"

namespace planish::PLANISH_ISA {

struct Vector {
  using AnyCodes = Vector;  // whose dot_int8 takes inputs of -128, too
  static constexpr int kInt8Zero = 0;
  static constexpr bool kInt4Pairs = false;
  static constexpr int kTiles = 1;
  static constexpr int kRowsAtOnce = 4;  // 4 rows x 1 tile of sums: 16 of 32 registers

  struct Ints {
    int32x4_t at[4];
  };
  struct Floats {
    float32x4_t at[4];
  };
  struct Bytes {
    int8x16_t at[4];
  };
  using Four = int8x16_t;

  template <class T, class F>
  PLANISH_INLINE static T make(F&& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  static Ints ints(int32_t x) {
    return make<Ints>([&](int) { return vdupq_n_s32(x); });
  }
  static Ints subtract(Ints a, Ints b) {
    return make<Ints>([&](int i) { return vsubq_s32(a.at[i], b.at[i]); });
  }
  static Ints add(Ints a, Ints b) {
    return make<Ints>([&](int i) { return vaddq_s32(a.at[i], b.at[i]); });
  }
  static Ints multiply(Ints a, Ints b) {
    return make<Ints>([&](int i) { return vmulq_s32(a.at[i], b.at[i]); });
  }
  static Ints max(Ints a, Ints b) {
    return make<Ints>([&](int i) { return vmaxq_s32(a.at[i], b.at[i]); });
  }
  static int32_t sum(Ints a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.at[0], a.at[1]), vaddq_s32(a.at[2], a.at[3])));
  }
  static int32_t largest(Ints a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.at[0], a.at[1]), vmaxq_s32(a.at[2], a.at[3])));
  }
  static Ints widen(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
             vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
             vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
             vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
  }
  static Ints widen(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)),
             vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))}};
  }
  static void narrow(int8_t* p, Ints x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.at[0]), vmovn_s32(x.at[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.at[2]), vmovn_s32(x.at[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  static Ints load_ints(const void* p) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    return make<Ints>([&](int i) { return vreinterpretq_s32_u8(vld1q_u8(bytes + 16 * i)); });
  }
  static void store_ints(int32_t* p, const Ints& x) {
    for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, x.at[i]);
  }
  template <int kBits>
  static Ints shift_left(Ints a) {
    return make<Ints>([&](int i) { return vshlq_s32(a.at[i], vdupq_n_s32(kBits)); });
  }
  template <int kBits>
  static Ints shift_right(Ints a) {  // keeps the sign
    return make<Ints>([&](int i) { return vshlq_s32(a.at[i], vdupq_n_s32(-kBits)); });
  }
  static Ints bits_and(Ints a, Ints b) {
    return make<Ints>([&](int i) { return vandq_s32(a.at[i], b.at[i]); });
  }

  static Bytes int8_weights(const uint8_t* p) {
    return make<Bytes>([&](int i) { return vreinterpretq_s8_u8(vld1q_u8(p + 16 * i)); });
  }
  static void int4_weights(const uint8_t* p, Bytes& first, Bytes& second) {
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t both = vld1q_u8(p + 16 * i);
      first.at[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
      second.at[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
  }
  static Four four(const int8_t* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(x));
  }
  static void dot_int8(Ints& sum, const Bytes& w, Four x) {
    for (int i = 0; i < 4; ++i) sum.at[i] = vdotq_s32(sum.at[i], w.at[i], x);
  }
  static void dot_int4(Ints& sum, const Bytes& w, Four x) { dot_int8(sum, w, x); }
  static Bytes signed_bytes(const int8_t* p) {
    return int8_weights(reinterpret_cast<const uint8_t*>(p));
  }
  static void dot_positive(Ints& sum, const Bytes& w, Four x) {  // x is 0..127, and w signed
    dot_int8(sum, w, x);
  }

  static Floats floats(float x) {
    return make<Floats>([&](int) { return vdupq_n_f32(x); });
  }
  static Floats to_floats(Ints x) {
    return make<Floats>([&](int i) { return vcvtq_f32_s32(x.at[i]); });
  }
  static Ints to_ints(Floats x) {  // half to even
    return make<Ints>([&](int i) { return vcvtnq_s32_f32(x.at[i]); });
  }
  static Ints bits(Floats x) {
    return make<Ints>([&](int i) { return vreinterpretq_s32_f32(x.at[i]); });
  }
  static Floats from_bits(Ints x) {
    return make<Floats>([&](int i) { return vreinterpretq_f32_s32(x.at[i]); });
  }
  static Floats load(const float* p) {
    return make<Floats>([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static Floats load_half(const uint16_t* p) {
    return make<Floats>(
        [&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static Floats load_part(const float* p, int64_t n) {
    float lanes[16] = {};
    __builtin_memcpy(lanes, p, sizeof(float) * n);
    return load(lanes);
  }
  static void store(float* p, Floats x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.at[i]);
  }
  static void stream(float* p, Floats x) { store(p, x); }
  static void end_streams() {}
  static void store_part(float* p, Floats x, int64_t n) {
    float lanes[16];
    store(lanes, x);
    __builtin_memcpy(p, lanes, sizeof(float) * n);
  }
  static Floats add(Floats a, Floats b) {
    return make<Floats>([&](int i) { return vaddq_f32(a.at[i], b.at[i]); });
  }
  static Floats subtract(Floats a, Floats b) {
    return make<Floats>([&](int i) { return vsubq_f32(a.at[i], b.at[i]); });
  }
  static Floats multiply(Floats a, Floats b) {
    return make<Floats>([&](int i) { return vmulq_f32(a.at[i], b.at[i]); });
  }
  static Floats divide(Floats a, Floats b) {
    return make<Floats>([&](int i) { return vdivq_f32(a.at[i], b.at[i]); });
  }
  static Floats fma(Floats a, Floats b, Floats c) {
    return make<Floats>([&](int i) { return vfmaq_f32(c.at[i], a.at[i], b.at[i]); });
  }
  static Floats max(Floats a, Floats b) {  // NaN where one is NaN
    return make<Floats>([&](int i) { return vmaxq_f32(a.at[i], b.at[i]); });
  }
  static Floats min(Floats a, Floats b) {
    return make<Floats>([&](int i) { return vminq_f32(a.at[i], b.at[i]); });
  }
  static bool any_above(Floats a, Floats b) {
    uint32x4_t above = vcgtq_f32(a.at[0], b.at[0]);
    for (int i = 1; i < 4; ++i) above = vorrq_u32(above, vcgtq_f32(a.at[i], b.at[i]));
    return vmaxvq_u32(above) != 0;
  }
  static Floats round(Floats x) {  // half to even
    return make<Floats>([&](int i) { return vrndnq_f32(x.at[i]); });
  }
  static float sum(Floats x) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(x.at[0], x.at[1]), vaddq_f32(x.at[2], x.at[3])));
  }
  static float largest(Floats x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.at[0], x.at[1]), vmaxq_f32(x.at[2], x.at[3])));
  }
  template <int kAt>
  static Floats nibbles(Ints x) {
    return to_floats(bits_and(shift_right<kAt>(x), ints(15)));
  }
  template <int kAt>
  static Floats centred_nibbles(Ints x) {
    return to_floats(subtract(bits_and(shift_right<kAt>(x), ints(15)), ints(8)));
  }
};

}  // namespace planish::PLANISH_ISA
