// AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles.
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
  static constexpr int kWidth = 16;
  __m512 v;

  Vec() = default;
  FUSESTEP_HD Vec(__m512 x) : v(x) {}
  FUSESTEP_HD Vec(float x) : v(_mm512_set1_ps(x)) {}

  FUSESTEP_HD static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  FUSESTEP_HD static Vec load(const BFloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  FUSESTEP_HD static Vec load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  FUSESTEP_HD void store(float* p) const { _mm512_storeu_ps(p, v); }
  FUSESTEP_HD void store(BFloat16* p) const {
    alignas(64) float lanes[kWidth];
    _mm512_store_ps(lanes, v);
    for (int i = 0; i < kWidth; ++i) p[i] = to_bfloat16(lanes[i]);
  }
  FUSESTEP_HD void store(Float16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a) { return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f)); }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return _mm512_sqrt_ps(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v); }
  // The instruction gives its second operand when either is NaN; the mask brings back a NaN that was the first.
  FUSESTEP_HD friend Vec max(Vec a, Vec b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v);
  }
  FUSESTEP_HD friend Vec min(Vec a, Vec b) {
    return _mm512_mask_mov_ps(_mm512_min_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v);
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 8;
  __m512d v;

  Vec() = default;
  FUSESTEP_HD Vec(__m512d x) : v(x) {}
  FUSESTEP_HD Vec(double x) : v(_mm512_set1_pd(x)) {}

  FUSESTEP_HD static Vec load(const double* p) { return _mm512_loadu_pd(p); }
  FUSESTEP_HD static Vec load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  FUSESTEP_HD static Vec load(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
  }
  FUSESTEP_HD static Vec load(const Float16* p) {
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  FUSESTEP_HD void store(double* p) const { _mm512_storeu_pd(p, v); }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm512_add_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return _mm512_sub_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return _mm512_mul_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return _mm512_div_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a) { return _mm512_xor_pd(a.v, _mm512_set1_pd(-0.0)); }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return _mm512_sqrt_pd(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a.v); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) {
    return _mm512_mask_mov_pd(_mm512_max_pd(a.v, b.v), _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q), a.v);
  }
  FUSESTEP_HD friend Vec min(Vec a, Vec b) {
    return _mm512_mask_mov_pd(_mm512_min_pd(a.v, b.v), _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q), a.v);
  }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
