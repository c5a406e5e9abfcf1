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
    // to_bfloat16 of each lane.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i upper = _mm512_srli_epi32(bits, 16);
    const __m512i bias = _mm512_add_epi32(_mm512_and_si512(upper, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    const __m512i nearest = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __m512i nan = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    const __m512i result = _mm512_mask_mov_epi32(nearest, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
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
  // The instruction returns its second operand when either is NaN. The mask restores a NaN in the first.
  FUSESTEP_HD friend Vec max(Vec a, Vec b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v);
  }
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x.v, n.v); }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y.v, limit.v, _CMP_NLT_UQ), x.v);
  }
  // Lane by lane, a where words[lane] has the bit, else b.
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    const __mmask16 has = _mm512_test_epi32_mask(_mm512_loadu_si512(words), _mm512_set1_epi32(static_cast<int>(bit)));
    return _mm512_mask_mov_ps(b.v, has, a.v);
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
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return _mm512_max_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return _mm512_min_pd(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_pd(x.v, n.v); }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(y.v, limit.v, _CMP_NLT_UQ), x.v);
  }
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __mmask8 has = _mm256_test_epi32_mask(word, _mm256_set1_epi32(static_cast<int>(bit)));
    return _mm512_mask_mov_pd(b.v, has, a.v);
  }
};

template <>
struct Vec<std::uint32_t> {
  static constexpr int kWidth = 16;
  __m512i v;

  Vec() = default;
  FUSESTEP_HD Vec(__m512i x) : v(x) {}
  FUSESTEP_HD Vec(std::uint32_t x) : v(_mm512_set1_epi32(static_cast<int>(x))) {}

  FUSESTEP_HD static Vec load(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
  FUSESTEP_HD static Vec load(const std::uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  FUSESTEP_HD void store(std::uint32_t* p) const { _mm512_storeu_si512(p, v); }
  FUSESTEP_HD static Vec iota(std::uint32_t first) {
    return Vec(first) + _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm512_add_epi32(a.v, b.v); }
  FUSESTEP_HD friend Vec operator^(Vec a, Vec b) { return _mm512_xor_si512(a.v, b.v); }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return _mm512_and_si512(a.v, b.v); }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return _mm512_or_si512(a.v, b.v); }
  FUSESTEP_HD friend Vec operator<<(Vec a, int bits) { return _mm512_slli_epi32(a.v, static_cast<unsigned>(bits)); }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return _mm512_srli_epi32(a.v, static_cast<unsigned>(bits)); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return _mm512_max_epu32(a.v, b.v); }
  // The instruction multiplies the even lanes only. The odd ones are shifted down and multiplied separately.
  FUSESTEP_HD friend void mul_wide(std::uint32_t a, Vec b, Vec& high, Vec& low) {
    const __m512i factor = Vec(a).v;
    const __m512i even = _mm512_mul_epu32(factor, b.v);
    const __m512i odd = _mm512_mul_epu32(factor, _mm512_srli_epi64(b.v, 32));
    const __m512i highs = _mm512_setr_epi32(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    const __m512i lows = _mm512_setr_epi32(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    high = _mm512_permutex2var_epi32(even, highs, odd);
    low = _mm512_permutex2var_epi32(even, lows, odd);
  }

  FUSESTEP_HD static void store_upper_halves(std::uint16_t* p, Vec a, Vec b) {
    auto* to = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(a.v, 16)));
    _mm256_storeu_si256(to + 1, _mm512_cvtepi32_epi16(_mm512_srli_epi32(b.v, 16)));
  }
  FUSESTEP_HD static void store_numbers(std::uint16_t* p, Vec a, Vec b, Vec c, Vec d) {
    const __m512i ab_low = _mm512_unpacklo_epi32(a.v, b.v);
    const __m512i ab_high = _mm512_unpackhi_epi32(a.v, b.v);
    const __m512i cd_low = _mm512_unpacklo_epi32(c.v, d.v);
    const __m512i cd_high = _mm512_unpackhi_epi32(c.v, d.v);
    // Lane i of each quarter: 4 * quarter + i.
    const __m512i lane0 = _mm512_unpacklo_epi64(ab_low, cd_low);
    const __m512i lane1 = _mm512_unpackhi_epi64(ab_low, cd_low);
    const __m512i lane2 = _mm512_unpacklo_epi64(ab_high, cd_high);
    const __m512i lane3 = _mm512_unpackhi_epi64(ab_high, cd_high);
    const __m512i front01 = _mm512_shuffle_i32x4(lane0, lane1, 0x44);
    const __m512i front23 = _mm512_shuffle_i32x4(lane2, lane3, 0x44);
    const __m512i back01 = _mm512_shuffle_i32x4(lane0, lane1, 0xee);
    const __m512i back23 = _mm512_shuffle_i32x4(lane2, lane3, 0xee);
    _mm512_storeu_si512(p, _mm512_shuffle_i32x4(front01, front23, 0x88));
    _mm512_storeu_si512(p + 32, _mm512_shuffle_i32x4(front01, front23, 0xdd));
    _mm512_storeu_si512(p + 64, _mm512_shuffle_i32x4(back01, back23, 0x88));
    _mm512_storeu_si512(p + 96, _mm512_shuffle_i32x4(back01, back23, 0xdd));
  }
};

// Lanes i of the two vectors of floats lie side by side.
template <>
struct Vec<std::uint16_t> {
  static constexpr int kWidth = 32;
  __m512i v;

  Vec() = default;
  FUSESTEP_HD Vec(__m512i x) : v(x) {}
  FUSESTEP_HD Vec(std::uint16_t x) : v(_mm512_set1_epi16(static_cast<short>(x))) {}

  FUSESTEP_HD static Vec upper_halves(Vec<float> a, Vec<float> b) {
    const __m512i of_a = _mm512_srli_epi32(_mm512_castps_si512(a.v), 16);
    return _mm512_mask_mov_epi16(of_a, 0xaaaaaaaau, _mm512_castps_si512(b.v));
  }
  FUSESTEP_HD void as_upper_halves(Vec<float>& a, Vec<float>& b) const {
    a = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    b = _mm512_castsi512_ps(_mm512_maskz_mov_epi16(0xaaaaaaaau, v));
  }
  FUSESTEP_HD static Vec load_upper_bytes(const std::uint8_t* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    const __m512i a = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
    const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128(from + 1));
    return _mm512_or_si512(_mm512_slli_epi32(a, 8), _mm512_slli_epi32(b, 24));
  }
  FUSESTEP_HD static void store_lower_bytes(std::uint8_t* p, Vec ab, Vec cd) {
    // The instruction drops what lies above the lowest byte of 32 bits.
    auto* to = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(to, _mm512_cvtepi32_epi8(ab.v));
    _mm_storeu_si128(to + 1, _mm512_cvtepi32_epi8(_mm512_srli_epi32(ab.v, 16)));
    _mm_storeu_si128(to + 2, _mm512_cvtepi32_epi8(cd.v));
    _mm_storeu_si128(to + 3, _mm512_cvtepi32_epi8(_mm512_srli_epi32(cd.v, 16)));
  }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return _mm512_add_epi16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return _mm512_sub_epi16(a.v, b.v); }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return _mm512_and_si512(a.v, b.v); }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return _mm512_or_si512(a.v, b.v); }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return _mm512_srli_epi16(a.v, static_cast<unsigned>(bits)); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return _mm512_max_epu16(a.v, b.v); }
  FUSESTEP_HD friend Vec excess(Vec a, Vec b) { return _mm512_subs_epu16(a.v, b.v); }
  // The instruction multiplies, divides by 2^15 and rounds.
  FUSESTEP_HD friend Vec shift_rounded(Vec a, int bits) {
    return _mm512_mulhrs_epi16(a.v, _mm512_set1_epi16(static_cast<short>(1 << (15 - bits))));
  }
  FUSESTEP_HD friend Vec where_not_zero(Vec condition, Vec x) {
    return _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(condition.v, condition.v), x.v);
  }
};

FUSESTEP_HD Vec<std::uint32_t> as_words(Vec<float> x) { return _mm512_castps_si512(x.v); }
FUSESTEP_HD Vec<float> as_float(Vec<std::uint32_t> x) { return _mm512_castsi512_ps(x.v); }

FUSESTEP_HD bool has_nan(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }

FUSESTEP_HD Vec<float> keep(Vec<float> x, Vec<std::uint32_t> number, Vec<std::uint32_t> threshold) {
  return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(number.v, threshold.v), x.v);
}
FUSESTEP_HD Vec<float> keep(Vec<float> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  const __m256i number = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers));
  const __m256i least = _mm256_set1_epi16(static_cast<short>(threshold));
  return _mm512_maskz_mov_ps(_mm256_cmpge_epu16_mask(number, least), x.v);
}
FUSESTEP_HD Vec<double> keep(Vec<double> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  const __m128i number = _mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers));
  const __m128i least = _mm_set1_epi16(static_cast<short>(threshold));
  return _mm512_maskz_mov_pd(_mm_cmpge_epu16_mask(number, least), x.v);
}

// Rows become columns.
FUSESTEP_HD void transpose(Vec<float> (&x)[16]) {
  __m512 pairs[16];
  __m512 fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    pairs[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  // fours[4 g + c]: column 4 q + c of rows 4 g to 4 g + 3, in quarter q.
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 front_even = _mm512_shuffle_f32x4(fours[c], fours[c + 4], 0x88);
    const __m512 front_odd = _mm512_shuffle_f32x4(fours[c], fours[c + 4], 0xdd);
    const __m512 back_even = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], 0x88);
    const __m512 back_odd = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], 0xdd);
    x[c].v = _mm512_shuffle_f32x4(front_even, back_even, 0x88);
    x[c + 4].v = _mm512_shuffle_f32x4(front_odd, back_odd, 0x88);
    x[c + 8].v = _mm512_shuffle_f32x4(front_even, back_even, 0xdd);
    x[c + 12].v = _mm512_shuffle_f32x4(front_odd, back_odd, 0xdd);
  }
}

// Bit i tells whether byte i of 32 is not zero.
FUSESTEP_HD std::uint32_t nonzero_bytes(const std::uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_test_epi8_mask(bytes, bytes);
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
