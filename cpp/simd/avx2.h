// AVX2 + FMA + F16C: 8 floats or 4 doubles.
#pragma once

#include <immintrin.h>

#include "math/hd.h"
#include "math/lowp.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kWidth = 8;
  __m256 v;

  Vec() = default;
  FUSESTEP_HD Vec(__m256 x) : v(x) {}
  FUSESTEP_HD Vec(float x) : v(_mm256_set1_ps(x)) {}

  FUSESTEP_HD static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  FUSESTEP_HD static Vec load(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  FUSESTEP_HD static Vec load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  FUSESTEP_HD void store(float* p) const { _mm256_storeu_ps(p, v); }
  FUSESTEP_HD void store(BFloat16* p) const {
    alignas(32) float lanes[kWidth];
    _mm256_store_ps(lanes, v);
    for (int i = 0; i < kWidth; ++i) p[i] = to_bfloat16(lanes[i]);
  }
  FUSESTEP_HD void store(Float16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a) { return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f)); }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return _mm256_sqrt_ps(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
  // The instruction gives its second operand when either is NaN; the blend brings back a NaN that was the first.
  FUSESTEP_HD friend Vec max(Vec a, Vec b) {
    return _mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  }
  FUSESTEP_HD friend Vec min(Vec a, Vec b) {
    return _mm256_blendv_ps(_mm256_min_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 4;
  __m256d v;

  Vec() = default;
  FUSESTEP_HD Vec(__m256d x) : v(x) {}
  FUSESTEP_HD Vec(double x) : v(_mm256_set1_pd(x)) {}

  FUSESTEP_HD static Vec load(const double* p) { return _mm256_loadu_pd(p); }
  FUSESTEP_HD static Vec load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  FUSESTEP_HD static Vec load(const BFloat16* p) {
    const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)));
  }
  FUSESTEP_HD static Vec load(const Float16* p) {
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  FUSESTEP_HD void store(double* p) const { _mm256_storeu_pd(p, v); }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm256_add_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return _mm256_sub_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return _mm256_mul_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return _mm256_div_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a) { return _mm256_xor_pd(a.v, _mm256_set1_pd(-0.0)); }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return _mm256_sqrt_pd(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) {
    return _mm256_blendv_pd(_mm256_max_pd(a.v, b.v), a.v, _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q));
  }
  FUSESTEP_HD friend Vec min(Vec a, Vec b) {
    return _mm256_blendv_pd(_mm256_min_pd(a.v, b.v), a.v, _mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q));
  }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
