// A list of gradients of any dtypes and layouts: its norm, and rewriting it in place.
#pragma once

#include <vector>

#include "backend.h"
#include "check.h"
#include "layout.h"

namespace fusestep {

class GradList {
 public:
  // The memory must stay until the list is gone.
  void add(const TensorView& grad, const Argument& argument);

  // Over all elements of all tensors, in double. The same bits for any number of threads and any instruction set.
  double norm(NormKind kind) const;

  void transform(GradTransform<double> transform) const;

 private:
  GradJob job() const;

  const Backend* backend_ = nullptr;
  std::vector<GradTensor> tensors_ = {GradTensor{}};  // the last one marks the end of the line
  LayoutStore layouts_;
};

}  // namespace fusestep
