// The arguments of the cross-entropy kernels. The same for every backend.
#pragma once

#include <cstdint>

#include "math/hd.h"
#include "tensors/view.h"

namespace fusestep {

struct MatrixTensor {
  void* data;
  std::int64_t row;  // strides, in elements
  std::int64_t column;
};

struct VectorTensor {
  void* data;
  std::int64_t stride;  // in elements
};

enum class Reduction { none, mean, sum };

// Of each row that is not ignored, with p = softmax(logits):
//   loss = (1 - label_smoothing) * (lse - logits[label]) + label_smoothing * (lse - mean(logits)) + z_loss * lse^2
// and its gradient; both divided by the number of such rows where the reduction is the mean.
struct CrossEntropyJob {
  DType dtype;  // of logits and grad
  std::int64_t rows;
  std::int64_t classes;
  MatrixTensor logits;
  MatrixTensor grad;  // data == nullptr: not wanted. May be logits
  const std::int64_t* labels;
  std::int64_t label_stride;
  std::int64_t ignore_index;
  double label_smoothing;
  double z_loss;
  Reduction reduction;
  VectorTensor
      loss;          // [rows], 0 where ignored; with a reduction one number. float64 where the logits are, else float32
  VectorTensor lse;  // [rows]; 0 where ignored
};

struct CrossEntropyResult {
  double loss;
  double lse;
};

// The loss of a row, from what is known of its logits. `mean`: of the logits, read only with label smoothing.
FUSESTEP_HD double cross_entropy_loss(const CrossEntropyJob& job, double lse, double of_label, double mean) {
  double loss = (1 - job.label_smoothing) * (lse - of_label);
  if (job.label_smoothing != 0) loss += job.label_smoothing * (lse - mean);
  if (job.z_loss != 0) loss += job.z_loss * lse * lse;
  return loss;
}

// The gradient of a logit is factor * exp(logit - highest) - smoothed, and `hit` less for that of the label.
template <class T>
struct CrossEntropyGradient {
  T factor;
  T smoothed;
  T hit;

  // scale: of the loss in the reduced one. exponentials: the row's sum of exp(logit - highest).
  FUSESTEP_HD CrossEntropyGradient(const CrossEntropyJob& job, double scale, double lse, double exponentials)
      : factor(static_cast<T>(scale * (1 + 2 * job.z_loss * lse) / exponentials)),
        smoothed(static_cast<T>(scale * job.label_smoothing / static_cast<double>(job.classes))),
        hit(static_cast<T>(scale * (1 - job.label_smoothing))) {}
};

}  // namespace fusestep
