// What happens to a gradient between backward and update: unscale, clip, turn round for maximize.
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
    return max(V(-limit), min(V(limit), grad * scale));
  }
};

}  // namespace fusestep
