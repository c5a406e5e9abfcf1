#include "operations/grads.h"

#include "backend/dispatch.h"
#include "tensors/view_layout.h"

namespace fusestep {

void check_totals(const TensorView& totals, Device decides, const char* operation) {
  if (totals.data == nullptr) return;
  const Argument argument{operation, "totals"};
  if (totals.dtype != DType::float64 || !is_contiguous(totals)) {
    refuse_value(argument, "contiguous float64", "another array");
  }
  if (totals.device != decides) refuse_value(argument, "an array where the step is decided", "one on another device");
}

void GradList::add(const TensorView& grad, const Argument& argument) {
  const Backend& backend = backend_for(grad.device, argument);
  if (backend_ == nullptr) {
    backend_ = &backend;
    device_ = grad.device;
  } else if (grad.device != device_) {
    refuse_value(argument, "the device of the first gradient", "another one", "Make one call for each device.");
  }
  if (grad.numel == 0) return;
  const TensorView* const views[] = {&grad};
  const int operands[] = {0};
  GradTensor& tensor = tensors_.back();
  tensor.data = grad.data;
  tensor.layout = layouts_.layout_of(views, operands, 1, argument);
  tensor.dtype = grad.dtype;
  GradTensor end{};
  end.begin = tensor.begin + grad.numel;
  tensors_.push_back(end);
}

GradJob GradList::job() const {
  return {tensors_.data(), static_cast<std::int64_t>(tensors_.size()) - 1, tensors_.back().begin};
}

const Backend& GradList::backend() const {
  return backend_ != nullptr ? *backend_ : backend_for(device_, {"gradients", "grads"});
}

void GradList::transform(GradTransform<double> transform, const Stream& stream) const {
  backend().transform(job(), transform, stream);
}

StepResult GradList::clip(const char* operation, const Clipping& clipping, const TensorView& norm,
                          const TensorView& totals, const Stream& stream) const {
  check_totals(totals, norm.data != nullptr ? device_ : Device{kDeviceCpu, 0}, operation);
  StepJob step{};
  step.operation = operation;
  step.clipping = clipping;
  if (norm.data != nullptr) {
    step.deferred.emplace();
    step.deferred->norm = norm;
  }
  step.totals = totals;
  step.grads = job();
  return backend().step(step, stream);
}

std::optional<double> GradList::total(NormKind kind, const TensorView& out, const Stream& stream) const {
  return backend().total(job(), kind, out, stream);
}

}  // namespace fusestep
