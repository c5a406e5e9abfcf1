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
    // to_bfloat16 of each lane.
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i bias = _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i nearest = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const __m256i nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i result = _mm256_blendv_epi8(nearest, nan, is_nan);
    // The instruction packs each half of the vector on its own.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
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
  // The instruction returns its second operand when either is NaN. The blend restores a NaN in the first.
  FUSESTEP_HD friend Vec max(Vec a, Vec b) {
    return _mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  }
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) {
    return _mm256_and_ps(_mm256_cmp_ps(y.v, limit.v, _CMP_NLT_UQ), x.v);
  }
  // Lane by lane, a where words[lane] has the bit, else b.
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    const __m256i bits = _mm256_set1_epi32(static_cast<int>(bit));
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m256i has = _mm256_cmpeq_epi32(_mm256_and_si256(word, bits), bits);
    return _mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(has));
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
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return _mm256_max_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return _mm256_min_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) {
    const __m256i exponent = _mm256_cvtepi32_epi64(_mm_add_epi32(_mm256_cvtpd_epi32(n.v), _mm_set1_epi32(1023)));
    return _mm256_mul_pd(x.v, _mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52)));
  }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) {
    return _mm256_and_pd(_mm256_cmp_pd(y.v, limit.v, _CMP_NLT_UQ), x.v);
  }
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    const __m128i bits = _mm_set1_epi32(static_cast<int>(bit));
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    const __m256i has = _mm256_cvtepi32_epi64(_mm_cmpeq_epi32(_mm_and_si128(word, bits), bits));
    return _mm256_blendv_pd(b.v, a.v, _mm256_castsi256_pd(has));
  }
};

template <>
struct Vec<std::uint32_t> {
  static constexpr int kWidth = 8;
  __m256i v;

  Vec() = default;
  FUSESTEP_HD Vec(__m256i x) : v(x) {}
  FUSESTEP_HD Vec(std::uint32_t x) : v(_mm256_set1_epi32(static_cast<int>(x))) {}

  FUSESTEP_HD static Vec load(const std::uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  FUSESTEP_HD static Vec load(const std::uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  FUSESTEP_HD void store(std::uint32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  FUSESTEP_HD static Vec iota(std::uint32_t first) { return Vec(first) + _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm256_add_epi32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator^(Vec a, Vec b) { return _mm256_xor_si256(a.v, b.v); }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return _mm256_and_si256(a.v, b.v); }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return _mm256_or_si256(a.v, b.v); }
  FUSESTEP_HD friend Vec operator<<(Vec a, int bits) { return _mm256_slli_epi32(a.v, bits); }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return _mm256_srli_epi32(a.v, bits); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return _mm256_max_epu32(a.v, b.v); }
  // The instruction multiplies the even lanes only. The odd ones are shifted down and multiplied separately.
  FUSESTEP_HD friend void mul_wide(std::uint32_t a, Vec b, Vec& high, Vec& low) {
    const __m256i factor = Vec(a).v;
    const __m256i even = _mm256_mul_epu32(factor, b.v);
    const __m256i odd = _mm256_mul_epu32(factor, _mm256_srli_epi64(b.v, 32));
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }

  FUSESTEP_HD static void store_upper_halves(std::uint16_t* p, Vec a, Vec b) {
    // The instruction packs each half of the vectors on its own.
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(a.v, 16), _mm256_srli_epi32(b.v, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  FUSESTEP_HD static void store_numbers(std::uint16_t* p, Vec a, Vec b, Vec c, Vec d) {
    auto* to = reinterpret_cast<__m256i*>(p);
    const __m256i ab_low = _mm256_unpacklo_epi32(a.v, b.v);
    const __m256i ab_high = _mm256_unpackhi_epi32(a.v, b.v);
    const __m256i cd_low = _mm256_unpacklo_epi32(c.v, d.v);
    const __m256i cd_high = _mm256_unpackhi_epi32(c.v, d.v);
    const __m256i lane04 = _mm256_unpacklo_epi64(ab_low, cd_low);
    const __m256i lane15 = _mm256_unpackhi_epi64(ab_low, cd_low);
    const __m256i lane26 = _mm256_unpacklo_epi64(ab_high, cd_high);
    const __m256i lane37 = _mm256_unpackhi_epi64(ab_high, cd_high);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(lane04, lane15, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(lane26, lane37, 0x20));
    _mm256_storeu_si256(to + 2, _mm256_permute2x128_si256(lane04, lane15, 0x31));
    _mm256_storeu_si256(to + 3, _mm256_permute2x128_si256(lane26, lane37, 0x31));
  }
};

// Lanes i of the two vectors of floats lie side by side.
template <>
struct Vec<std::uint16_t> {
  static constexpr int kWidth = 16;
  __m256i v;

  Vec() = default;
  FUSESTEP_HD Vec(__m256i x) : v(x) {}
  FUSESTEP_HD Vec(std::uint16_t x) : v(_mm256_set1_epi16(static_cast<short>(x))) {}

  FUSESTEP_HD static Vec upper_halves(Vec<float> a, Vec<float> b) {
    const __m256i of_a = _mm256_srli_epi32(_mm256_castps_si256(a.v), 16);
    return _mm256_blend_epi16(of_a, _mm256_castps_si256(b.v), 0xaa);
  }
  FUSESTEP_HD void as_upper_halves(Vec<float>& a, Vec<float>& b) const {
    a = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    b = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  FUSESTEP_HD static Vec load_upper_bytes(const std::uint8_t* p) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_shuffle_epi8(twice, _mm256_setr_epi8(-1, 0, -1, 8, -1, 1, -1, 9, -1, 2, -1, 10, -1, 3, -1, 11,  //
                                                       -1, 4, -1, 12, -1, 5, -1, 13, -1, 6, -1, 14, -1, 7, -1, 15));
  }
  FUSESTEP_HD static void store_lower_bytes(std::uint8_t* p, Vec ab, Vec cd) {
    // Each half of the vectors on its own: its four bytes of a, of b, of c and of d.
    const __m256i fours = _mm256_shuffle_epi8(_mm256_packus_epi16(ab.v, cd.v),
                                              _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,  //
                                                               0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(fours, order));
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm256_add_epi16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return _mm256_sub_epi16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return _mm256_and_si256(a.v, b.v); }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return _mm256_or_si256(a.v, b.v); }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return _mm256_srli_epi16(a.v, bits); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return _mm256_max_epu16(a.v, b.v); }
  FUSESTEP_HD friend Vec excess(Vec a, Vec b) { return _mm256_subs_epu16(a.v, b.v); }
  // The instruction multiplies, divides by 2^15 and rounds.
  FUSESTEP_HD friend Vec shift_rounded(Vec a, int bits) {
    return _mm256_mulhrs_epi16(a.v, _mm256_set1_epi16(static_cast<short>(1 << (15 - bits))));
  }
  // The instruction takes the sign of the condition.
  FUSESTEP_HD friend Vec where_not_zero(Vec condition, Vec x) { return _mm256_sign_epi16(x.v, condition.v); }
};

FUSESTEP_HD Vec<std::uint32_t> as_words(Vec<float> x) { return _mm256_castps_si256(x.v); }
FUSESTEP_HD Vec<float> as_float(Vec<std::uint32_t> x) { return _mm256_castsi256_ps(x.v); }

FUSESTEP_HD bool has_nan(Vec<float> a, Vec<float> b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_UNORD_Q)) != 0;
}

// There is no unsigned comparison: a >= b exactly if max(a, b) is a.
FUSESTEP_HD Vec<float> keep(Vec<float> x, Vec<std::uint32_t> number, Vec<std::uint32_t> threshold) {
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(number.v, threshold.v), number.v);
  return _mm256_and_ps(x.v, _mm256_castsi256_ps(kept));
}
FUSESTEP_HD Vec<float> keep(Vec<float> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  const __m128i number = _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers));
  const __m128i least = _mm_set1_epi16(static_cast<short>(threshold));
  const __m128i kept = _mm_cmpeq_epi16(_mm_max_epu16(number, least), number);
  return _mm256_and_ps(x.v, _mm256_castsi256_ps(_mm256_cvtepi16_epi32(kept)));
}
FUSESTEP_HD Vec<double> keep(Vec<double> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  const __m128i number = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers));
  const __m128i least = _mm_set1_epi16(static_cast<short>(threshold));
  const __m128i kept = _mm_cmpeq_epi16(_mm_max_epu16(number, least), number);
  return _mm256_and_pd(x.v, _mm256_castsi256_pd(_mm256_cvtepi16_epi64(kept)));
}

// Rows become columns.
FUSESTEP_HD void transpose(Vec<float> (&x)[8]) {
  __m256 pairs[8];
  __m256 fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    x[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    x[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// Bit i tells whether byte i of 32 is not zero.
FUSESTEP_HD std::uint32_t nonzero_bytes(const std::uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return ~static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
