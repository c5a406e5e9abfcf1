// Powers of two, for any vector type that offers scale_by_power, zero_below and the arithmetic of math/hd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/hd.h"
#include "math/lowp.h"

namespace fusestep {

// x * 2^n for a whole number n from the exponent of the smallest normal number to that of the largest.
FUSESTEP_HD float scale_by_power(float x, float n) {
  return x * float_of(static_cast<std::uint32_t>((n < -126 ? -126 : static_cast<std::int32_t>(n)) + 127) << 23);
}
FUSESTEP_HD double scale_by_power(double x, double n) {
  const auto bits = static_cast<std::uint64_t>((n < -1022 ? -1022 : static_cast<std::int64_t>(n)) + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return x * power;
}

// x, or 0 where y is below the limit; x where y is NaN.
FUSESTEP_HD float zero_below(float x, float y, float limit) { return y < limit ? 0 : x; }
FUSESTEP_HD double zero_below(double x, double y, double limit) { return y < limit ? 0 : x; }

template <class T>
struct Exp2;

// The fits are of (2^f - 1) / f on [-1/2, 1/2] in Chebyshev's nodes: relative errors of 2^f of 5e-9 and 1e-19.
template <>
struct Exp2<float> {
  static constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  static constexpr float kLowest = -126;           // the exponent of the smallest normal number
  static constexpr int kTerms = 6;
  static constexpr float kTerm[kTerms] = {0.693147188026228781f,   0.240226507605681269f,   0.0555035711421907782f,
                                          0.00961808255727785149f, 0.00133908633646712344f, 0.000154531629451206902f};
};

template <>
struct Exp2<double> {
  static constexpr double kRounding = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -1022;
  static constexpr int kTerms = 12;
  static constexpr double kTerm[kTerms] = {0.693147180559945309,     0.240226506959100712,    0.055504108664821627,
                                           0.00961812910762847949,   0.00133335581464064707,  0.000154035303933707334,
                                           0.0000152527338415567726, 1.32154868087055628e-6,  1.01780570877339411e-7,
                                           7.05489730415549928e-9,   4.45581790833606449e-10, 2.57293241773623042e-11};
};

// 2^x = 2^n * (1 + fraction * slope): n whole. The product lies in [-0.3, 0.42] and is accurate relative to itself.
template <class V>
struct SplitPower {
  V n;
  V fraction;
  V slope;
};

// The fit's terms from kFirst on. A recursion, not a loop: device code has no array to index.
template <class T, class V, int kFirst = 0>
FUSESTEP_HD V fitted_slope(V f) {
  constexpr T kTerm = Exp2<T>::kTerm[kFirst];
  if constexpr (kFirst + 1 == Exp2<T>::kTerms) {
    return V(kTerm);
  } else {
    return fma(fitted_slope<T, V, kFirst + 1>(f), f, V(kTerm));
  }
}

template <class T, class V>
FUSESTEP_HD SplitPower<V> split_exp2(V x) {
  using C = Exp2<T>;
  const V n = (x + V(C::kRounding)) - V(C::kRounding);
  const V f = x - n;
  return {n, f, fitted_slope<T>(f)};
}

// 2^x for x below the largest exponent. What would be subnormal is 0 (processors compute them slowly, some devices
// give 0 anyway), and so is 2^-inf.
template <class T, class V>
FUSESTEP_HD V exp2(V x) {
  const SplitPower<V> power = split_exp2<T>(x);
  return zero_below(scale_by_power(fma(power.fraction, power.slope, V(T(1))), power.n), x, V(Exp2<T>::kLowest));
}

}  // namespace fusestep
