#include "operations/cross_entropy.h"

#include <string>

#include "backend/dispatch.h"
#include "operations/attention_checks.h"
#include "tensors/check_view.h"
#include "tensors/overlap.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

MatrixTensor matrix(const TensorView& view) { return {view.data, stride_of(view, 0), stride_of(view, 1)}; }
VectorTensor vector(const TensorView& view) { return {view.data, view.ndim == 0 ? 0 : stride_of(view, 0)}; }

}  // namespace

CrossEntropyPlan::CrossEntropyPlan(const char* operation, const TensorView& logits, const TensorView& labels,
                                   const TensorView& loss, const TensorView& lse, const TensorView* grad,
                                   const CrossEntropyOptions& options) {
  const Argument logits_argument{operation, "logits"};
  const Argument labels_argument{operation, "labels"};
  const Argument loss_argument{operation, "loss"};
  const Argument lse_argument{operation, "lse"};
  const Argument grad_argument{operation, "grad"};
  if (logits.ndim != 2) refuse_value(logits_argument, "2 dimensions (rows, classes)", describe_shape(logits));
  if (logits.shape[1] == 0) refuse_value(logits_argument, "at least one class", describe_shape(logits));
  backend_ = &backend_for(logits.device, logits_argument);
  check_dtype(labels, DType::int64, labels_argument);
  check_device(labels, logits.device, labels_argument, "logits");
  check_shape(labels, {logits.shape[0]}, labels_argument);
  const DType wide = logits.dtype == DType::float64 ? DType::float64 : DType::float32;
  check_dtype(loss, wide, loss_argument);
  check_dtype(lse, wide, lse_argument);
  check_device(loss, logits.device, loss_argument, "logits");
  check_device(lse, logits.device, lse_argument, "logits");
  if (options.reduction == Reduction::none) {
    check_shape(loss, {logits.shape[0]}, loss_argument);
  } else {
    check_shape(loss, {}, loss_argument);
  }
  check_shape(lse, {logits.shape[0]}, lse_argument);
  check_writable(loss, loss_argument);
  check_writable(lse, lse_argument);
  OverlapCheck overlaps;
  overlaps.writes(loss, loss_argument);
  overlaps.writes(lse, lse_argument);
  overlaps.reads(labels, labels_argument);
  if (grad != nullptr) {
    check_dtype(*grad, logits.dtype, grad_argument);
    check_like(*grad, logits, grad_argument, "logits");
    check_writable(*grad, grad_argument);
    overlaps.writes(*grad, grad_argument);
    job_.grad = matrix(*grad);
  }
  // A row is read as a whole before it is written.
  if (grad == nullptr || grad->data != logits.data || !same_strides(*grad, logits)) {
    overlaps.reads(logits, logits_argument);
  }
  overlaps.check();

  job_.dtype = logits.dtype;
  job_.rows = logits.shape[0];
  job_.classes = logits.shape[1];
  job_.logits = matrix(logits);
  job_.labels = static_cast<const std::int64_t*>(labels.data);
  job_.label_stride = stride_of(labels, 0);
  job_.ignore_index = options.ignore_index;
  job_.label_smoothing = options.label_smoothing;
  job_.z_loss = options.z_loss;
  job_.reduction = options.reduction;
  job_.loss = vector(loss);
  job_.lse = vector(lse);
  if (!backend_->defers) check_labels(labels_argument);
}

void CrossEntropyPlan::check_labels(const Argument& argument) const {
  for (std::int64_t row = 0; row < job_.rows; ++row) {
    const std::int64_t label = job_.labels[row * job_.label_stride];
    if (label == job_.ignore_index || (label >= 0 && label < job_.classes)) continue;
    refuse_value({argument.operation, argument.name, row},
                 "a class from 0 to " + std::to_string(job_.classes - 1) +
                     ", or ignore_index = " + std::to_string(job_.ignore_index),
                 std::to_string(label));
  }
}

void CrossEntropyPlan::run(const Stream& stream) { backend_->cross_entropy(job_, stream); }

}  // namespace fusestep
