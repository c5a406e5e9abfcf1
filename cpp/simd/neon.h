// NEON (aarch64): 4 floats or 2 doubles. fmax and fmin of aarch64 already give NaN if either operand is.
#pragma once

#include <arm_neon.h>

#include "math/hd.h"
#include "math/lowp.h"
#include "simd/bytes.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kWidth = 4;
  float32x4_t v;

  Vec() = default;
  FUSESTEP_HD Vec(float32x4_t x) : v(x) {}
  FUSESTEP_HD Vec(float x) : v(vdupq_n_f32(x)) {}

  FUSESTEP_HD static Vec load(const float* p) { return vld1q_f32(p); }
  FUSESTEP_HD static Vec load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
  }
  FUSESTEP_HD static Vec load(const Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
  }
  FUSESTEP_HD void store(float* p) const { vst1q_f32(p, v); }
  FUSESTEP_HD void store(BFloat16* p) const {
    float lanes[kWidth];
    vst1q_f32(lanes, v);
    for (int i = 0; i < kWidth; ++i) p[i] = to_bfloat16(lanes[i]);
  }
  FUSESTEP_HD void store(Float16* p) const {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return vaddq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return vsubq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return vmulq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return vdivq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a) { return vnegq_f32(a.v); }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c.v, a.v, b.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return vsqrtq_f32(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return vabsq_f32(a.v); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return vmaxq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return vmaxq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return vminq_f32(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
    return vmulq_f32(x.v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) {
    return vbslq_f32(vcltq_f32(y.v, limit.v), vdupq_n_f32(0), x.v);
  }
  // Lane by lane, a where words[lane] has the bit, else b.
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    return vbslq_f32(vtstq_u32(vld1q_u32(words), vdupq_n_u32(bit)), a.v, b.v);
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 2;
  float64x2_t v;

  Vec() = default;
  FUSESTEP_HD Vec(float64x2_t x) : v(x) {}
  FUSESTEP_HD Vec(double x) : v(vdupq_n_f64(x)) {}

  FUSESTEP_HD static Vec load(const double* p) { return vld1q_f64(p); }
  FUSESTEP_HD static Vec load(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
  FUSESTEP_HD static Vec load(const BFloat16* p) { return pair(to_float(p[0]), to_float(p[1])); }
  FUSESTEP_HD static Vec load(const Float16* p) { return pair(to_float(p[0]), to_float(p[1])); }
  FUSESTEP_HD void store(double* p) const { vst1q_f64(p, v); }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return vaddq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return vsubq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return vmulq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return vdivq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a) { return vnegq_f64(a.v); }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f64(c.v, a.v, b.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return vsqrtq_f64(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return vabsq_f64(a.v); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return vmaxq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return vmaxq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return vminq_f64(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) {
    const int64x2_t exponent = vaddq_s64(vcvtq_s64_f64(n.v), vdupq_n_s64(1023));
    return vmulq_f64(x.v, vreinterpretq_f64_s64(vshlq_n_s64(exponent, 52)));
  }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) {
    return vbslq_f64(vcltq_f64(y.v, limit.v), vdupq_n_f64(0), x.v);
  }
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    const uint64x2_t word = vmovl_u32(vld1_u32(words));
    return vbslq_f64(vtstq_u64(word, vdupq_n_u64(bit)), a.v, b.v);
  }

 private:
  FUSESTEP_HD static Vec pair(float low, float high) {
    const double lanes[kWidth] = {low, high};
    return vld1q_f64(lanes);
  }
};

template <>
struct Vec<std::uint32_t> {
  static constexpr int kWidth = 4;
  uint32x4_t v;

  Vec() = default;
  FUSESTEP_HD Vec(uint32x4_t x) : v(x) {}
  FUSESTEP_HD Vec(std::uint32_t x) : v(vdupq_n_u32(x)) {}

  FUSESTEP_HD static Vec load(const std::uint32_t* p) { return vld1q_u32(p); }
  FUSESTEP_HD static Vec load(const std::uint16_t* p) { return vmovl_u16(vld1_u16(p)); }
  FUSESTEP_HD void store(std::uint32_t* p) const { vst1q_u32(p, v); }
  FUSESTEP_HD static Vec iota(std::uint32_t first) {
    const std::uint32_t lanes[kWidth] = {first, first + 1, first + 2, first + 3};
    return load(lanes);
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return vaddq_u32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator^(Vec a, Vec b) { return veorq_u32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return vandq_u32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return vorrq_u32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator<<(Vec a, int bits) { return vshlq_u32(a.v, vdupq_n_s32(bits)); }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return vshlq_u32(a.v, vdupq_n_s32(-bits)); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return vmaxq_u32(a.v, b.v); }
  FUSESTEP_HD friend void mul_wide(std::uint32_t a, Vec b, Vec& high, Vec& low) {
    const uint32x4_t front = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(b.v), a));
    const uint32x4_t back = vreinterpretq_u32_u64(vmull_high_n_u32(b.v, a));
    high = vuzp2q_u32(front, back);
    low = vuzp1q_u32(front, back);
  }

  FUSESTEP_HD static void store_upper_halves(std::uint16_t* p, Vec a, Vec b) {
    vst1q_u16(p, vuzp2q_u16(vreinterpretq_u16_u32(a.v), vreinterpretq_u16_u32(b.v)));
  }
  FUSESTEP_HD static void store_numbers(std::uint16_t* p, Vec a, Vec b, Vec c, Vec d) {
    std::uint32_t words[4 * kWidth];
    vst4q_u32(words, {{a.v, b.v, c.v, d.v}});
    memcpy(p, words, sizeof words);
  }
};

template <>
struct Vec<std::uint16_t> {
  static constexpr int kWidth = 8;
  uint16x8_t v;

  Vec() = default;
  FUSESTEP_HD Vec(uint16x8_t x) : v(x) {}
  FUSESTEP_HD Vec(std::uint16_t x) : v(vdupq_n_u16(x)) {}

  FUSESTEP_HD static Vec upper_halves(Vec<float> a, Vec<float> b) {
    return vuzp2q_u16(vreinterpretq_u16_f32(a.v), vreinterpretq_u16_f32(b.v));
  }
  FUSESTEP_HD void as_upper_halves(Vec<float>& a, Vec<float>& b) const {
    a = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16));
    b = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(v), 16));
  }
  FUSESTEP_HD static Vec load_upper_bytes(const std::uint8_t* p) { return vshll_n_u8(vld1_u8(p), 8); }
  FUSESTEP_HD static void store_lower_bytes(std::uint8_t* p, Vec ab, Vec cd) {
    vst1q_u8(p, vcombine_u8(vmovn_u16(ab.v), vmovn_u16(cd.v)));
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return vaddq_u16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return vsubq_u16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return vandq_u16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return vorrq_u16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return vshlq_u16(a.v, shift_by(-bits)); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return vmaxq_u16(a.v, b.v); }
  FUSESTEP_HD friend Vec excess(Vec a, Vec b) { return vqsubq_u16(a.v, b.v); }
  FUSESTEP_HD friend Vec shift_rounded(Vec a, int bits) { return vrshlq_u16(a.v, shift_by(-bits)); }
  FUSESTEP_HD friend Vec where_not_zero(Vec condition, Vec x) {
    return vandq_u16(vtstq_u16(condition.v, condition.v), x.v);
  }

 private:
  FUSESTEP_HD static int16x8_t shift_by(int bits) { return vdupq_n_s16(static_cast<std::int16_t>(bits)); }
};

FUSESTEP_HD Vec<std::uint32_t> as_words(Vec<float> x) { return vreinterpretq_u32_f32(x.v); }
FUSESTEP_HD Vec<float> as_float(Vec<std::uint32_t> x) { return vreinterpretq_f32_u32(x.v); }

FUSESTEP_HD bool has_nan(Vec<float> a, Vec<float> b) {
  const float greatest = vmaxvq_f32(vmaxq_f32(a.v, b.v));  // NaN if any is
  return greatest != greatest;
}

FUSESTEP_HD Vec<float> keep(Vec<float> x, Vec<std::uint32_t> number, Vec<std::uint32_t> threshold) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.v), vcgeq_u32(number.v, threshold.v)));
}
FUSESTEP_HD Vec<float> keep(Vec<float> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  return keep(x, Vec<std::uint32_t>(vmovl_u16(vld1_u16(numbers))), Vec<std::uint32_t>(threshold));
}
FUSESTEP_HD Vec<double> keep(Vec<double> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  const std::uint64_t lanes[] = {numbers[0], numbers[1]};
  const uint64x2_t kept = vcgeq_u64(vld1q_u64(lanes), vdupq_n_u64(threshold));
  return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(x.v), kept));
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
