// The two 16-bit floating-point types, and their exact conversions to and from float.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/hd.h"

namespace fusestep {

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// The type that arithmetic on elements of type S is done in.
template <class S>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

FUSESTEP_HD std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FUSESTEP_HD float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FUSESTEP_HD float to_float(BFloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }

FUSESTEP_HD float to_float(Float16 x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, NaN
  // In a float's bits the exponent is too small by 127 - 15. A multiplication corrects it, exactly, and also
  // normalises subnormal numbers.
  const float value = float_of(magnitude << 13) * float_of(0x77800000u);  // * 2^112
  return float_of(sign | bits_of(value));
}

// Of a float's bits: the upper half of the result is the nearest BFloat16, ties to even. Not for NaN. W: a word, or a
// vector of them.
template <class W>
FUSESTEP_HD W nearest_bfloat16(W bits) {
  return bits + (W(0x7fffu) + (bits >> 16 & W(1u)));
}

// To the nearest, ties to even; a NaN stays a NaN.
FUSESTEP_HD BFloat16 to_bfloat16(float x) {
  const std::uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>(nearest_bfloat16(bits) >> 16)};
}

FUSESTEP_HD Float16 to_float16(float x) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

}  // namespace fusestep
