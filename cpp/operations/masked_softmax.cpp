#include "operations/masked_softmax.h"

#include <algorithm>
#include <string>

#include "backend/dispatch.h"
#include "operations/attention_checks.h"
#include "tensors/check_view.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

constexpr int kDims = 4;

// The sizes or strides of a view's dimensions, the last of them at `end`; `missing` for those before the first.
struct Padded {
  std::int64_t shape[kDims] = {1, 1, 1, 1};
  std::int64_t strides[kDims] = {};

  Padded(const TensorView& view, int end) {
    for (int d = 0; d < view.ndim; ++d) {
      shape[end - view.ndim + d] = view.shape[d];
      strides[end - view.ndim + d] = stride_of(view, d);
    }
  }
};

HeadTensor padded_tensor(const TensorView& view, int end = kDims) {
  const Padded padded(view, end);
  return {view.data, padded.strides[0], padded.strides[1], padded.strides[2], padded.strides[3]};
}

}  // namespace

SoftmaxPlan::SoftmaxPlan(const char* operation, const TensorView& scores, const TensorView& lse,
                         const AttentionOptions& options)
    : operation_(operation) {
  const Argument scores_argument{operation, "scores"};
  const Argument lse_argument{operation, "lse"};
  check_attention_options(operation, options);
  if (scores.ndim < 2 || scores.ndim > kDims) {
    refuse_value(scores_argument, "2 to 4 dimensions ([[batch,] heads,] queries, keys)", describe_shape(scores));
  }
  backend_ = &backend_for(scores.device, scores_argument);
  check_dtype(lse, scores.dtype == DType::float64 ? DType::float64 : DType::float32, lse_argument);
  check_device(lse, scores.device, lse_argument, "scores");
  TensorView rows = scores;  // without the last dimension
  rows.ndim = scores.ndim - 1;
  if (!same_shape(lse, rows)) refuse_value(lse_argument, "shape " + describe_shape(rows), describe_shape(lse));

  const Padded padded(scores, kDims);
  job_.dtype = scores.dtype;
  job_.batch = padded.shape[0];
  job_.heads = padded.shape[1];
  job_.queries = padded.shape[2];
  job_.keys = padded.shape[3];
  job_.scores = padded_tensor(scores);
  job_.lse = padded_tensor(lse, kDims - 1);
  job_.scale = options.scale.value_or(1);
  job_.dropout =
      dropout_rule(options.dropout_p, checked_seed(options.seed, scores.device, {operation, "seed"}), options.offset);
  add_bands(options);
  if (options.mask) {
    job_.mask = mask_tensor(*options.mask, scores, padded.shape, {operation, "mask"});
    job_.mask_dtype = options.mask->dtype;
    overlaps_.reads(*options.mask, {operation, "mask"});
  }
}

SoftmaxPlan SoftmaxPlan::forward(const char* operation, const TensorView& scores, const TensorView& out,
                                 const TensorView& lse, const AttentionOptions& options) {
  SoftmaxPlan plan(operation, scores, lse, options);
  const Argument out_argument{operation, "out"};
  const Argument lse_argument{operation, "lse"};
  plan.check_like_scores(out, scores, out_argument);
  check_writable(out, out_argument);
  check_writable(lse, lse_argument);
  plan.job_.out = padded_tensor(out);
  plan.overlaps_.writes(out, out_argument);
  plan.overlaps_.writes(lse, lse_argument);
  // A row is read as a whole before it is written.
  if (out.data != scores.data || !same_strides(out, scores)) plan.overlaps_.reads(scores, {operation, "scores"});
  plan.overlaps_.check();
  return plan;
}

SoftmaxPlan SoftmaxPlan::backward(const char* operation, const TensorView& grad_out, const TensorView& scores,
                                  const TensorView& lse, const TensorView& grad_scores, const TensorView* grad_mask,
                                  const AttentionOptions& options) {
  SoftmaxPlan plan(operation, scores, lse, options);
  const Argument grad_out_argument{operation, "grad_out"};
  const Argument grad_scores_argument{operation, "grad_scores"};
  plan.check_like_scores(grad_out, scores, grad_out_argument);
  plan.check_like_scores(grad_scores, scores, grad_scores_argument);
  check_writable(grad_scores, grad_scores_argument);
  plan.grads_.grad_out = padded_tensor(grad_out);
  plan.grads_.grad_scores = padded_tensor(grad_scores);
  plan.overlaps_.reads(grad_out, grad_out_argument);
  plan.overlaps_.reads(scores, {operation, "scores"});
  plan.overlaps_.reads(lse, {operation, "lse"});
  plan.overlaps_.writes(grad_scores, grad_scores_argument);
  if (grad_mask != nullptr) plan.add_grad_mask(*grad_mask, options);
  plan.overlaps_.check();
  return plan;
}

void SoftmaxPlan::check_like_scores(const TensorView& view, const TensorView& scores, const Argument& argument) const {
  check_dtype(view, scores.dtype, argument);
  check_like(view, scores, argument, "scores");
}

void SoftmaxPlan::add_bands(const AttentionOptions& options) {
  const Argument argument{operation_, "key_lengths"};
  IntegerArray lengths{};
  if (options.key_lengths) {
    check_shape(*options.key_lengths, {job_.batch}, argument);
    lengths = integers(*options.key_lengths, {kDeviceCpu, 0}, argument);
  }
  for (std::int64_t b = 0; b < job_.batch; ++b) {
    std::int64_t keys = job_.keys;
    if (options.key_lengths) {
      keys = lengths[b];
      if (keys < 0 || keys > job_.keys) {
        refuse_value({operation_, "key_lengths", b}, "0 to " + std::to_string(job_.keys), std::to_string(keys));
      }
    }
    bands_.push_back(make_band(options.causal, options.window_left, options.window_right, job_.queries, keys));
  }
}

void SoftmaxPlan::add_grad_mask(const TensorView& grad_mask, const AttentionOptions& options) {
  const Argument argument{operation_, "grad_mask"};
  if (!options.mask) refuse_value(argument, "None where there is no mask", "an array");
  if (options.mask->dtype == DType::boolean) {
    refuse_value(argument, "None where the mask is boolean", "an array", "Only an additive mask has a gradient.");
  }
  check_dtype(grad_mask, options.mask->dtype, argument);
  check_like(grad_mask, *options.mask, argument, "mask");
  check_writable(grad_mask, argument);
  overlaps_.writes(grad_mask, argument);
  const Padded padded(grad_mask, kDims);
  std::int64_t strides[kDims];
  for (int d = 0; d < kDims; ++d) {
    grads_.mask_has[d] = padded.shape[d] != 1;
    strides[d] = grads_.mask_has[d] ? padded.strides[d] : 0;
  }
  grads_.grad_mask = {grad_mask.data, strides[0], strides[1], strides[2], strides[3]};
  grads_.grad_mask_dtype = grad_mask.dtype;
}

}  // namespace fusestep
