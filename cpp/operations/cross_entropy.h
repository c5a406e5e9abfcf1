// Cross-entropy with its gradient: what is asked for, checked, and run.
#pragma once

#include "backend/backend.h"
#include "tensors/check.h"

namespace fusestep {

struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;
  double z_loss = 0;
  Reduction reduction = Reduction::mean;
};

class CrossEntropyPlan {
 public:
  // loss: (rows,) without a reduction, else (); lse: (rows,). `grad` may be null, or logits themselves.
  CrossEntropyPlan(const char* operation, const TensorView& logits, const TensorView& labels, const TensorView& loss,
                   const TensorView& lse, const TensorView* grad, const CrossEntropyOptions& options);

  void run(const Stream& stream);

 private:
  void check_labels(const Argument& argument) const;

  const Backend* backend_;
  CrossEntropyJob job_{};
};

}  // namespace fusestep
