#include "cpu_backend.h"

#include <cmath>

#include "cpu_attention.h"
#include "cpu_kernels.h"
#include "cpu_masked_softmax.h"
#include "slices.h"

namespace fusestep {

namespace {

double norm(const GradJob& job, NormKind kind, const Stream& /*stream*/) {
  if (job.numel == 0) return 0;
  std::vector<double> partial(static_cast<std::size_t>(slices(job.numel)));
  const auto norm_slice = cpu_kernels().norm[static_cast<int>(kind)];
  for_each_slice(job.numel, [&](std::int64_t s) { partial[static_cast<std::size_t>(s)] = norm_slice(job, s); });
  return with_norm(kind, [&]<class Norm>(Norm) {
    return Norm::finish(combine_slices<Norm>(partial.data(), static_cast<std::int64_t>(partial.size())));
  });
}

void rewrite(const GradJob& job, GradTransform<double> transform, const Stream& /*stream*/) {
  for_each_slice(job.numel, [&](std::int64_t s) { cpu_kernels().transform(job, transform, s); });
}

void update(const UpdateBatch& batch, const unsigned char* coefficients, GradTransform<double> transform) {
  if (batch.maximize) transform.scale = -transform.scale;
  const UpdateJob job{batch.tensors.data(), static_cast<std::int64_t>(batch.tensors.size()) - 1,
                      batch.tensors.back().begin, coefficients, transform};
  const auto update_slice = cpu_kernels().update[batch.variant][static_cast<int>(batch.dtypes)];
  for_each_slice(job.numel, [&](std::int64_t slice) { update_slice(job, slice); });
}

void count_up(const TensorView& count) {
  if (count.dtype == DType::float32) {
    *static_cast<float*>(count.data) += 1;
  } else {
    *static_cast<double*>(count.data) += 1;
  }
}

StepResult step(const StepJob& job, const Stream& stream) {
  const Clipping& clipping = job.clipping;
  StepResult result{std::nullopt, true};
  if (clipping.needs_norm()) {
    result.norm = norm(job.grads, clipping.norm_kind, stream) / clipping.grad_scale;
    const bool finite = std::isfinite(*result.norm);
    if (!finite && clipping.on_nonfinite == OnNonfinite::raise) throw NonfiniteNorm(job.operation, *result.norm);
    if (!finite && clipping.on_nonfinite == OnNonfinite::skip) {
      result.applied = false;
      return result;
    }
  }
  const GradTransform<double> transform = clipping.rule().transform(result.norm.value_or(0), clipping.grad_scale);
  for (const UpdateBatch& batch : job.batches) update(batch, job.coefficients.data(), transform);
  // After the update, which has to see the gradients unrounded.
  const bool identity = transform.scale == 1 && std::isinf(transform.limit);
  if (clipping.rewrite_grads && !identity) rewrite(job.grads, transform, stream);
  for (const TensorView& count : job.step_counts) count_up(count);
  return result;
}

void dropout(const DropoutJob& job, const Stream& /*stream*/) {
  for_each_slice(job.numel, [&](std::int64_t slice) { cpu_kernels().dropout(job, slice); });
}

}  // namespace

const Backend kCpuBackend{"cpu",
                          step,
                          norm,
                          rewrite,
                          dropout,
                          cpu_attention_forward,
                          cpu_attention_backward,
                          cpu_masked_softmax_forward,
                          cpu_masked_softmax_backward};

}  // namespace fusestep
