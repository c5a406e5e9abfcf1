#include "operations/cross_entropy.h"

#include <limits>
#include <string>

#include "backend/dispatch.h"
#include "operations/attention_checks.h"
#include "tensors/check_view.h"
#include "tensors/overlap.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

void store(const TensorView& view, std::int64_t i, double value) {
  const std::int64_t at = view.ndim == 0 ? 0 : i * stride_of(view, 0);
  if (view.dtype == DType::float64) {
    static_cast<double*>(view.data)[at] = value;
  } else {
    static_cast<float*>(view.data)[at] = static_cast<float>(value);
  }
}

MatrixTensor matrix(const TensorView& view) { return {view.data, stride_of(view, 0), stride_of(view, 1)}; }

}  // namespace

CrossEntropyPlan::CrossEntropyPlan(const char* operation, const TensorView& logits, const TensorView& labels,
                                   const TensorView& loss, const TensorView& lse, const TensorView* grad,
                                   const CrossEntropyOptions& options)
    : loss_(loss), lse_(lse), reduction_(options.reduction) {
  const Argument logits_argument{operation, "logits"};
  const Argument labels_argument{operation, "labels"};
  const Argument loss_argument{operation, "loss"};
  const Argument lse_argument{operation, "lse"};
  const Argument grad_argument{operation, "grad"};
  if (logits.ndim != 2) refuse_value(logits_argument, "2 dimensions (rows, classes)", describe_shape(logits));
  if (logits.shape[1] == 0) refuse_value(logits_argument, "at least one class", describe_shape(logits));
  backend_ = &backend_for(logits.device, logits_argument);
  if (backend_->cross_entropy == nullptr) {
    refuse_value(logits_argument, "an array in CPU memory", "one on a CUDA device",
                 "fusestep.nn.functional.cross_entropy takes tensors on every device.");
  }
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
  counted_ = count_labels(labels_argument);
  job_.grad_scale = reduction_ == Reduction::mean && counted_ > 0 ? 1 / static_cast<double>(counted_) : 1;
}

std::int64_t CrossEntropyPlan::count_labels(const Argument& argument) const {
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < job_.rows; ++row) {
    const std::int64_t label = job_.labels[row * job_.label_stride];
    if (label == job_.ignore_index) continue;
    if (label < 0 || label >= job_.classes) {
      refuse_value({argument.operation, argument.name, row},
                   "a class from 0 to " + std::to_string(job_.classes - 1) +
                       ", or ignore_index = " + std::to_string(job_.ignore_index),
                   std::to_string(label));
    }
    ++counted;
  }
  return counted;
}

void CrossEntropyPlan::run(const Stream& stream) {
  std::vector<double> results(static_cast<std::size_t>(2 * job_.rows + 1));
  job_.loss = results.data();
  job_.lse = results.data() + job_.rows;
  backend_->cross_entropy(job_, stream);
  double total = 0;
  for (std::int64_t row = 0; row < job_.rows; ++row) {
    store(lse_, row, job_.lse[row]);
    if (reduction_ == Reduction::none) store(loss_, row, job_.loss[row]);
    total += job_.loss[row];
  }
  if (reduction_ == Reduction::none) return;
  if (reduction_ == Reduction::mean) {
    total = counted_ > 0 ? total / static_cast<double>(counted_) : std::numeric_limits<double>::quiet_NaN();
  }
  store(loss_, 0, total);
}

}  // namespace fusestep
