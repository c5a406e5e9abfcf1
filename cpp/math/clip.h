// What happens to a gradient between backward and update: unscale, clip, negate for maximize.
#pragma once

#include "math/hd.h"

namespace fusestep {

// Clipping by the global norm, as torch.nn.utils.clip_grad_norm_: the coefficient that brings `norm` down to
// `max_norm`, never above 1. The 1e-6 is torch's, it keeps a zero norm from dividing by zero.
FUSESTEP_HD double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;  // a NaN stays
}

// The seed's other rule: g <- factor * g when the norm is over the threshold, g otherwise.
FUSESTEP_HD double threshold_coefficient(double norm, double threshold, double factor) {
  return norm > threshold ? factor : norm != norm ? norm : 1;
}

// grad * scale, then clamped to [-limit, limit]. A limit of infinity clamps nothing; a NaN stays a NaN.
template <class T>
struct GradTransform {
  T scale;
  T limit;

  template <class V>
  FUSESTEP_HD V operator()(V grad) const {
    return max_number(V(-limit), min_number(V(limit), grad * scale));
  }
};

// The clipping options, and the factor that follows from a norm.
struct ClipRule {
  double max_norm;  // infinity: only measured
  double factor;
  bool by_factor;  // multiply by `factor` above max_norm, instead of scaling down to it
  double limit;    // of each element

  // What unscaled gradients of this norm are multiplied by.
  FUSESTEP_HD double coefficient(double norm) const {
    if (max_norm > 1.7976931348623157e308) return 1;
    return by_factor ? threshold_coefficient(norm, max_norm, factor) : clip_coefficient(norm, max_norm);
  }

  FUSESTEP_HD GradTransform<double> transform(double norm, double grad_scale) const {
    return {coefficient(norm) / grad_scale, limit};
  }
};

}  // namespace fusestep
