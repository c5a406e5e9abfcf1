// How a step treats its gradients: the clipping options, the same for every optimizer and every backend.
#pragma once

#include <limits>
#include <optional>
#include <stdexcept>

#include "math/clip.h"
#include "math/norm.h"

namespace fusestep {

enum class OnNonfinite { skip, raise, propagate };

struct Clipping {
  std::optional<double> max_grad_norm;
  NormKind norm_kind = NormKind::two;
  std::optional<double> clip_factor;     // the seed's rule instead of rescaling to max_grad_norm
  std::optional<double> max_grad_value;  // clamps each element
  OnNonfinite on_nonfinite = OnNonfinite::propagate;
  double grad_scale = 1;
  bool rewrite_grads = false;

  bool needs_norm() const { return max_grad_norm.has_value() || on_nonfinite != OnNonfinite::propagate; }

  ClipRule rule() const {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    return {max_grad_norm.value_or(kInfinity), clip_factor.value_or(1), clip_factor.has_value(),
            max_grad_value.value_or(kInfinity)};
  }
};

// Thrown under OnNonfinite::raise (Python's RuntimeError), with nothing changed.
struct NonfiniteNorm : std::runtime_error {
  NonfiniteNorm(const char* operation, double norm);
};

}  // namespace fusestep
