#include "operations/grads.h"

#include "backend/dispatch.h"

namespace fusestep {

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
                          const Stream& stream) const {
  StepJob step{};
  step.operation = operation;
  step.clipping = clipping;
  if (norm.data != nullptr) {
    step.deferred.emplace();
    step.deferred->norm = norm;
  }
  step.grads = job();
  return backend().step(step, stream);
}

}  // namespace fusestep
