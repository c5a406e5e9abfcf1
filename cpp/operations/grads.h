// A list of gradients of any dtypes and layouts, as a job: its norm, and rewriting it in place.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "tensors/check.h"
#include "tensors/layout.h"

namespace fusestep {

// Refuses parts of a norm's sum that cannot be added up on the device where the step is decided.
void check_totals(const TensorView& totals, Device decides, const char* operation);

class GradList {
 public:
  // The memory must stay until the list is gone.
  void add(const TensorView& grad, const Argument& argument);

  // Where all of them are: the CPU where there are none.
  Device device() const { return device_; }

  GradJob job() const;

  void transform(GradTransform<double> transform, const Stream& stream) const;

  // The norm, and clipping in place where clipping.rewrite_grads says so. `norm`: a scalar on their device that takes
  // the norm, in place of the result; data == nullptr: none. `totals`: as StepPlan::take_totals.
  StepResult clip(const char* operation, const Clipping& clipping, const TensorView& norm, const TensorView& totals,
                  const Stream& stream) const;

  // The sum of the norm before its root, into the scalar `out` where it is given.
  std::optional<double> total(NormKind kind, const TensorView& out, const Stream& stream) const;

 private:
  const Backend& backend() const;

  const Backend* backend_ = nullptr;
  Device device_{kDeviceCpu, 0};
  std::vector<GradTensor> tensors_ = {GradTensor{}};  // the last one marks the end of the line
  LayoutStore layouts_;
};

}  // namespace fusestep
