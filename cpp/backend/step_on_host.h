// The course of a step whose norm the host sees: what the CPU does, and CUDA too unless the step is deferred.
#pragma once

#include <cmath>
#include <optional>

#include "backend/backend.h"

namespace fusestep {

// total() -> double, of the gradients; update(batch, transform) for each batch; rewrite(transform) of the gradients.
template <class Total, class Update, class Rewrite>
StepResult step_on_host(const StepJob& job, const Total& total, const Update& update, const Rewrite& rewrite) {
  const Clipping& clipping = job.clipping;
  const auto norm = [&] {
    return with_norm(clipping.norm_kind, [&]<class Norm>(Norm) {
      const auto* parts = static_cast<const double*>(job.totals.data);
      return Norm::finish(parts == nullptr ? total() : combine_slices<Norm>(parts, job.totals.numel));
    });
  };
  StepResult result{std::nullopt, true};
  if (clipping.needs_norm()) {
    result.norm = norm() / clipping.grad_scale;
    const bool finite = std::isfinite(*result.norm);
    if (!finite && clipping.on_nonfinite == OnNonfinite::raise) throw NonfiniteNorm(job.operation, *result.norm);
    if (!finite && clipping.on_nonfinite == OnNonfinite::skip) {
      result.applied = false;
      return result;
    }
  }
  const GradTransform<double> transform = clipping.rule().transform(result.norm.value_or(0), clipping.grad_scale);
  for (const UpdateBatch& batch : job.batches) update(batch, transform);
  // After the update, which has to see the gradients unrounded.
  const bool identity = transform.scale == 1 && std::isinf(transform.limit);
  if (clipping.rewrite_grads && !identity) rewrite(transform);
  for (const TensorView& count : job.step_counts) {
    if (count.dtype == DType::float32) {
      *static_cast<float*>(count.data) += 1;
    } else {
      *static_cast<double*>(count.data) += 1;
    }
  }
  return result;
}

}  // namespace fusestep
