// The vector type of the scalar level: one element. It runs on every CPU, and it is the plainest statement of what a
// vector type offers:
//   Vec<T>::kWidth, Vec(T) broadcasts, load(const S*) reads kWidth elements of storage type S, store(S*) writes them,
//   + - * /, unary -, fma, sqrt, abs, max, max_number, min_number with the meaning of math/hd.h, scale_by_power,
//   zero_below with that of math/exp2.h.
#pragma once

#include "math/eight_bit.h"
#include "math/exp2.h"
#include "math/hd.h"
#include "math/lowp.h"
#include "math/philox.h"
#include "simd/bytes.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class T>
struct Vec {
  static constexpr int kWidth = 1;
  T v;

  Vec() = default;
  FUSESTEP_HD Vec(T x) : v(x) {}

  FUSESTEP_HD static Vec load(const float* p) { return static_cast<T>(*p); }
  FUSESTEP_HD static Vec load(const double* p) { return static_cast<T>(*p); }
  FUSESTEP_HD static Vec load(const BFloat16* p) { return static_cast<T>(to_float(*p)); }
  FUSESTEP_HD static Vec load(const Float16* p) { return static_cast<T>(to_float(*p)); }
  FUSESTEP_HD void store(T* p) const { *p = v; }
  FUSESTEP_HD void store(BFloat16* p) const { *p = to_bfloat16(v); }
  FUSESTEP_HD void store(Float16* p) const { *p = to_float16(v); }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  FUSESTEP_HD friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  FUSESTEP_HD friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  FUSESTEP_HD friend Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  FUSESTEP_HD friend Vec operator-(Vec a) { return -a.v; }
  FUSESTEP_HD friend Vec fma(Vec a, Vec b, Vec c) { return fusestep::fma(a.v, b.v, c.v); }
  FUSESTEP_HD friend Vec sqrt(Vec a) { return fusestep::sqrt(a.v); }
  FUSESTEP_HD friend Vec abs(Vec a) { return fusestep::abs(a.v); }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return fusestep::max(a.v, b.v); }
  FUSESTEP_HD friend Vec max_number(Vec a, Vec b) { return fusestep::max_number(a.v, b.v); }
  FUSESTEP_HD friend Vec min_number(Vec a, Vec b) { return fusestep::min_number(a.v, b.v); }
  FUSESTEP_HD friend Vec scale_by_power(Vec x, Vec n) { return fusestep::scale_by_power(x.v, n.v); }
  FUSESTEP_HD friend Vec zero_below(Vec x, Vec y, Vec limit) { return fusestep::zero_below(x.v, y.v, limit.v); }
  // Lane by lane, a where words[lane] has the bit, else b.
  FUSESTEP_HD static Vec choose(const std::uint32_t* words, std::uint32_t bit, Vec a, Vec b) {
    return (*words & bit) != 0 ? a : b;
  }
};

// Words for Philox: as many as floats (kWidth), with ^ & | +, shifts and mul_wide of math/philox.h.
template <>
struct Vec<std::uint32_t> {
  static constexpr int kWidth = 1;
  std::uint32_t v;

  Vec() = default;
  FUSESTEP_HD Vec(std::uint32_t x) : v(x) {}

  FUSESTEP_HD static Vec load(const std::uint32_t* p) { return *p; }
  FUSESTEP_HD static Vec load(const std::uint16_t* p) { return *p; }
  FUSESTEP_HD void store(std::uint32_t* p) const { *p = v; }
  // first, first + 1, ...
  FUSESTEP_HD static Vec iota(std::uint32_t first) { return first; }

  FUSESTEP_HD friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  FUSESTEP_HD friend Vec operator^(Vec a, Vec b) { return a.v ^ b.v; }
  FUSESTEP_HD friend Vec operator&(Vec a, Vec b) { return a.v & b.v; }
  FUSESTEP_HD friend Vec operator|(Vec a, Vec b) { return a.v | b.v; }
  FUSESTEP_HD friend Vec operator<<(Vec a, int bits) { return a.v << bits; }
  FUSESTEP_HD friend Vec operator>>(Vec a, int bits) { return a.v >> bits; }
  FUSESTEP_HD friend Vec max(Vec a, Vec b) { return a.v > b.v ? a : b; }
  FUSESTEP_HD friend void mul_wide(std::uint32_t a, Vec b, Vec& high, Vec& low) {
    fusestep::mul_wide(a, b.v, high.v, low.v);
  }

  // The upper halves of the lanes of a, then of b.
  FUSESTEP_HD static void store_upper_halves(std::uint16_t* p, Vec a, Vec b) {
    p[0] = static_cast<std::uint16_t>(a.v >> 16);
    p[1] = static_cast<std::uint16_t>(b.v >> 16);
  }
  // Each lane holds the four words of one Philox call. Its eight 16-bit numbers go to p + 8 * lane.
  FUSESTEP_HD static void store_numbers(std::uint16_t* p, Vec a, Vec b, Vec c, Vec d) {
    const std::uint32_t words[] = {a.v, b.v, c.v, d.v};
    for (int i = 0; i < 8; ++i) p[i] = static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16));
  }
};

// The upper halves of two vectors of floats, in an order of its own, with the operations of math/eight_bit.h.
template <>
struct Vec<std::uint16_t> {
  static constexpr int kWidth = 2;
  std::uint32_t a, b;

  Vec() = default;
  FUSESTEP_HD Vec(std::uint16_t x) : a(x), b(x) {}
  FUSESTEP_HD Vec(std::uint32_t first, std::uint32_t second) : a(first), b(second) {}

  FUSESTEP_HD static Vec upper_halves(Vec<float> x, Vec<float> y) { return {bits_of(x.v) >> 16, bits_of(y.v) >> 16}; }
  // The floats whose upper halves these are. Their lower halves are 0.
  FUSESTEP_HD void as_upper_halves(Vec<float>& x, Vec<float>& y) const {
    x = float_of(a << 16);
    y = float_of(b << 16);
  }
  // kWidth bytes, in the order of the floats. The lower bytes become 0.
  FUSESTEP_HD static Vec load_upper_bytes(const std::uint8_t* p) { return {p[0] * 256u, p[1] * 256u}; }
  // The lower bytes of both. Their upper bytes must be 0.
  FUSESTEP_HD static void store_lower_bytes(std::uint8_t* p, Vec x, Vec y) {
    p[0] = static_cast<std::uint8_t>(x.a);
    p[1] = static_cast<std::uint8_t>(x.b);
    p[2] = static_cast<std::uint8_t>(y.a);
    p[3] = static_cast<std::uint8_t>(y.b);
  }

  FUSESTEP_HD friend Vec operator+(Vec x, Vec y) { return {x.a + y.a, x.b + y.b}; }
  FUSESTEP_HD friend Vec operator-(Vec x, Vec y) { return {x.a - y.a, x.b - y.b}; }
  FUSESTEP_HD friend Vec operator&(Vec x, Vec y) { return {x.a & y.a, x.b & y.b}; }
  FUSESTEP_HD friend Vec operator|(Vec x, Vec y) { return {x.a | y.a, x.b | y.b}; }
  FUSESTEP_HD friend Vec operator>>(Vec x, int bits) { return {x.a >> bits, x.b >> bits}; }
  FUSESTEP_HD friend Vec max(Vec x, Vec y) { return {fusestep::max(x.a, y.a), fusestep::max(x.b, y.b)}; }
  FUSESTEP_HD friend Vec excess(Vec x, Vec y) { return {fusestep::excess(x.a, y.a), fusestep::excess(x.b, y.b)}; }
  FUSESTEP_HD friend Vec shift_rounded(Vec x, int bits) {
    return {fusestep::shift_rounded(x.a, bits), fusestep::shift_rounded(x.b, bits)};
  }
  FUSESTEP_HD friend Vec where_not_zero(Vec condition, Vec x) {
    return {fusestep::where_not_zero(condition.a, x.a), fusestep::where_not_zero(condition.b, x.b)};
  }
};

FUSESTEP_HD Vec<std::uint32_t> as_words(Vec<float> x) { return bits_of(x.v); }
FUSESTEP_HD Vec<float> as_float(Vec<std::uint32_t> x) { return float_of(x.v); }

// Whether a lane of either is NaN.
FUSESTEP_HD bool has_nan(Vec<float> a, Vec<float> b) { return a.v != a.v || b.v != b.v; }

// x where its number is not below the threshold, else 0.
FUSESTEP_HD Vec<float> keep(Vec<float> x, Vec<std::uint32_t> number, Vec<std::uint32_t> threshold) {
  return number.v >= threshold.v ? x.v : 0.0f;
}
template <class T>
FUSESTEP_HD Vec<T> keep(Vec<T> x, const std::uint16_t* numbers, std::uint16_t threshold) {
  return *numbers >= threshold ? x.v : T(0);
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
