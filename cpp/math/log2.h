// Logarithms from powers of two: a first guess from the bits of a float, then steps that each reduce the error to its
// fourth power.
#pragma once

#include "math/exp2.h"

namespace fusestep {

// log2 of a normal number, within 0.09.
FUSESTEP_HD float guess_log2(float x) {
  return static_cast<float>(bits_of(x)) * float_of(0x34000000u) - 126.95f;  // * 2^-23: the exponent, and the mantissa
}

// log2(x) for x from 1 to 2^100, from a guess as above.
template <class T, class V>
FUSESTEP_HD V log2_from(V guess, V x) {
  constexpr int kSteps = sizeof(T) == 4 ? 2 : 3;
  V y = guess;
  for (int step = 0; step < kSteps; ++step) {
    // x = 2^y (1 + e), so what is missing is log2(1 + e) = log2(e) (e - e^2 / 2 + e^3 / 3 - ...).
    const V e = fma(x, exp2<T>(-y), V(T(-1)));
    const V series = fma(fma(V(T(1.0 / 3)), e, V(T(-0.5))), e, V(T(1)));
    y = fma(e * V(T(1.4426950408889634)), series, y);
  }
  return y;
}

}  // namespace fusestep
