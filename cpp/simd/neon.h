// NEON (aarch64): 4 floats or 2 doubles. fmax and fmin of aarch64 already give NaN if either operand is.
#pragma once

#include <arm_neon.h>

#include "math/hd.h"
#include "math/lowp.h"

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
  FUSESTEP_HD friend Vec min(Vec a, Vec b) { return vminq_f32(a.v, b.v); }
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
  FUSESTEP_HD friend Vec min(Vec a, Vec b) { return vminq_f64(a.v, b.v); }

 private:
  FUSESTEP_HD static Vec pair(float low, float high) {
    const double lanes[kWidth] = {low, high};
    return vld1q_f64(lanes);
  }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
