#include "grads.h"

#include <cmath>

#include "dispatch.h"
#include "slices.h"

namespace fusestep {

void GradList::add(const TensorView& grad, const Argument& argument) {
  backend_ = &backend_for(grad.device, argument);
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

double GradList::norm(NormKind kind) const {
  const GradJob job = this->job();
  if (job.numel == 0) return 0;
  std::vector<double> partial(static_cast<std::size_t>(slices(job.numel)));
  const auto norm_slice = backend_->norm[static_cast<int>(kind)];
  for_each_slice(job.numel, [&](std::int64_t s) { partial[static_cast<std::size_t>(s)] = norm_slice(job, s); });
  // In the order of the slices, whoever computed them.
  double total = 0;
  for (const double p : partial) total = kind == NormKind::inf ? max(total, p) : total + p;
  return kind == NormKind::two ? std::sqrt(total) : total;
}

void GradList::transform(GradTransform<double> transform) const {
  const GradJob job = this->job();
  for_each_slice(job.numel, [&](std::int64_t s) { backend_->transform(job, transform, s); });
}

}  // namespace fusestep
