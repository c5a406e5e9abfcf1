// What is applied to a scaled product of query and key before the softmax. Scores are in base 2 (multiplied with
// log2 e), so that the softmax takes powers of two.
#pragma once

#include "math/exp2.h"

namespace fusestep {

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;

// tanh(x) = e / (e + 2) with e = exp(2 x) - 1, accurate relative to itself also near 0. Beyond 20 it is 1.
template <class T, class V>
FUSESTEP_HD V tanh(V x) {
  const V bounded = max_number(V(T(-20)), min_number(V(T(20)), x));
  const SplitPower<V> power = split_exp2<T>(bounded * V(static_cast<T>(2 * kLog2E)));
  const V two_to_n = scale_by_power(V(T(1)), power.n);
  const V e = fma(two_to_n, power.fraction * power.slope, two_to_n - V(T(1)));
  return e / (e + V(T(2)));
}

// The terms in the order in which they apply. An additive mask comes last: add_mask.
template <class T>
struct ScoreTerms {
  T query_scale;  // what queries are multiplied with before the product: the scale, in base 2 unless there is a cap
  T cap;          // 0: none
  T inverse_cap;
  T cap_base2;
  T slope_base2;  // ALiBi's, of this head

  FUSESTEP_HD ScoreTerms(double scale, double softcap, double slope)
      : query_scale(static_cast<T>(softcap == 0 ? scale * kLog2E : scale)),
        cap(static_cast<T>(softcap)),
        inverse_cap(static_cast<T>(softcap == 0 ? 0 : 1 / softcap)),
        cap_base2(static_cast<T>(softcap * kLog2E)),
        slope_base2(static_cast<T>(slope * kLog2E)) {}

  FUSESTEP_HD bool changes() const { return cap != 0 || slope_base2 != 0; }

  // t = tanh(score / cap). The derivative of the capped score is 1 - t^2.
  template <class V>
  FUSESTEP_HD V capped_tanh(V score) const {
    return tanh<T>(score * V(inverse_cap));
  }

  // score: of prescaled queries. distance: |query + shift - key|. The result is in base 2.
  template <class V>
  FUSESTEP_HD V operator()(V score, V distance) const {
    if (cap != 0) score = capped_tanh(score) * V(cap_base2);
    return fma(V(-slope_base2), distance, score);
  }
};

// Additive values below -FLT_MAX / log2(e) (finfo.min is one) overflow to -inf on purpose: they exclude.
template <class T, class V>
FUSESTEP_HD V add_mask(V score_base2, V mask) {
  return fma(mask, V(static_cast<T>(kLog2E)), score_base2);
}

}  // namespace fusestep
