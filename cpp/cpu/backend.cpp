#include "cpu/backend.h"

#include <cmath>

#include "backend/step_on_host.h"
#include "cpu/attention.h"
#include "cpu/cross_entropy.h"
#include "cpu/kernel_table.h"
#include "cpu/masked_softmax.h"
#include "cpu/slices.h"
#include "jobs/slices.h"

namespace fusestep {

namespace {

double sum(const GradJob& job, NormKind kind) {
  if (job.numel == 0) return 0;
  std::vector<double> partial(static_cast<std::size_t>(slices(job.numel)));
  const auto norm_slice = cpu_kernels().norm[static_cast<int>(kind)];
  for_each_slice(job.numel, [&](std::int64_t s) { partial[static_cast<std::size_t>(s)] = norm_slice(job, s); });
  return with_norm(kind, [&]<class Norm>(Norm) {
    return combine_slices<Norm>(partial.data(), static_cast<std::int64_t>(partial.size()));
  });
}

std::optional<double> total(const GradJob& job, NormKind kind, const TensorView& /*out*/, const Stream& /*stream*/) {
  return sum(job, kind);
}

void rewrite(const GradJob& job, GradTransform<double> transform, const Stream& /*stream*/) {
  for_each_slice(job.numel, [&](std::int64_t s) { cpu_kernels().transform(job, transform, s); });
}

void update(const UpdateBatch& batch, const unsigned char* coefficients, GradTransform<double> transform) {
  if (batch.maximize) transform.scale = -transform.scale;
  const UpdateJob job{batch.tensors.data(), static_cast<std::int64_t>(batch.tensors.size()) - 1,
                      batch.tensors.back().begin, coefficients, transform};
  const auto update_slice = cpu_kernels().update[batch.variant][static_cast<int>(batch.arithmetic)];
  for_each_slice(job.numel, [&](std::int64_t slice) { update_slice(job, slice); });
}

StepResult step(const StepJob& job, const Stream& stream) {
  return step_on_host(
      job, [&] { return sum(job.grads, job.clipping.norm_kind); },
      [&](const UpdateBatch& batch, GradTransform<double> transform) {
        update(batch, job.coefficients.data(), transform);
      },
      [&](GradTransform<double> transform) { rewrite(job.grads, transform, stream); });
}

void dropout(const DropoutJob& job, const Stream& /*stream*/) {
  for_each_slice(job.numel, [&](std::int64_t slice) { cpu_kernels().dropout(job, slice); });
}

}  // namespace

const Backend kCpuBackend{
    .name = "cpu",
    .defers = false,
    .strided_8bit = true,
    .step = step,
    .total = total,
    .transform = rewrite,
    .dropout = dropout,
    .attention_forward = cpu_attention_forward,
    .attention_backward = cpu_attention_backward,
    .masked_softmax_forward = cpu_masked_softmax_forward,
    .masked_softmax_backward = cpu_masked_softmax_backward,
    .cross_entropy = cpu_cross_entropy,
};

}  // namespace fusestep
