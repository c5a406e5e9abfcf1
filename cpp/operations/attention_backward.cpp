#include "operations/attention_backward.h"

#include <algorithm>
#include <string>

#include "operations/attention_checks.h"
#include "tensors/check_view.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

void check_same_shape(const TensorView& view, const TensorView& of, const Argument& argument) {
  if (same_shape(view, of)) return;
  refuse_value(argument, "shape " + describe_shape(of), describe_shape(view));
}

}  // namespace

AttentionBackwardPlan::AttentionBackwardPlan(const char* operation, const TensorView& query, const TensorView& key,
                                             const TensorView& value, const TensorView& out, const TensorView& lse,
                                             const AttentionGradViews& grads, const AttentionOptions& options)
    : plan_(operation, query, key, value, options) {
  plan_.add_results(out, &lse);
  AttentionPlan::note_inputs(overlaps_, operation, query, key, value, options);
  overlaps_.reads(out, {operation, "out"});
  overlaps_.reads(lse, {operation, "lse"});
  const bool packed = options.cu_seqlens_q.has_value();
  const Argument grad_out{operation, "grad_out"};
  check_dtype(grads.grad_out, query.dtype, grad_out);
  check_device(grads.grad_out, query.device, grad_out);
  check_same_shape(grads.grad_out, out, grad_out);
  grads_.grad_out = head_tensor(grads.grad_out, packed);
  overlaps_.reads(grads.grad_out, grad_out);

  const auto add = [&](const std::optional<TensorView>& grad, const TensorView& of, const char* name,
                       HeadTensor& tensor) {
    if (!grad) return;
    check_grad(*grad, of, {operation, name});
    tensor = head_tensor(*grad, packed);
  };
  add(grads.grad_query, query, "grad_query", grads_.grad_query);
  add(grads.grad_key, key, "grad_key", grads_.grad_key);
  add(grads.grad_value, value, "grad_value", grads_.grad_value);
  if (grads.grad_mask) add_grad_mask(*grads.grad_mask, options, {operation, "grad_mask"});
  overlaps_.check();
}

void AttentionBackwardPlan::check_grad(const TensorView& grad, const TensorView& of, const Argument& argument) {
  check_dtype(grad, of.dtype, argument);
  check_device(grad, of.device, argument);
  check_same_shape(grad, of, argument);
  check_writable(grad, argument);
  overlaps_.writes(grad, argument);
}

void AttentionBackwardPlan::add_grad_mask(const TensorView& grad_mask, const AttentionOptions& options,
                                          const Argument& argument) {
  if (!options.mask) refuse_value(argument, "None where there is no mask", "an array");
  if (options.mask->dtype == DType::boolean) {
    refuse_value(argument, "None where the mask is boolean", "an array", "Only an additive mask has a gradient.");
  }
  check_grad(grad_mask, *options.mask, argument);
  std::int64_t strides[4] = {};
  std::fill_n(grads_.grad_mask_shape, 4, 1);
  for (int d = 0; d < grad_mask.ndim; ++d) {
    const int full = 4 - grad_mask.ndim + d;
    grads_.grad_mask_shape[full] = grad_mask.shape[d];
    strides[full] = grad_mask.shape[d] == 1 ? 0 : stride_of(grad_mask, d);
  }
  const bool packed = options.cu_seqlens_q.has_value();
  grads_.grad_mask = {grad_mask.data, packed ? 0 : strides[0], strides[1], strides[2], strides[3]};
  grads_.grad_mask_dtype = grad_mask.dtype;
  grads_.mask_has_head = grads_.grad_mask_shape[1] != 1;
  grads_.mask_has_query = grads_.grad_mask_shape[2] != 1;
  grads_.mask_has_key = grads_.grad_mask_shape[3] != 1;
  grads_.mask_has_batch = packed ? grads_.mask_has_query || grads_.mask_has_key : grads_.grad_mask_shape[0] != 1;
  const AttentionJob& job = plan_.job();
  grads_.grad_mask_needs_zeros = packed || job.num_sequences == 0 || job.heads == 0;
}

void AttentionBackwardPlan::run(const Stream& stream) const {
  plan_.backend().attention_backward(plan_.job(), grads_, stream);
}

}  // namespace fusestep
