// The arguments of the cross-entropy kernels. The same for every backend.
#pragma once

#include <cstdint>

#include "tensors/view.h"

namespace fusestep {

struct MatrixTensor {
  void* data;
  std::int64_t row;  // strides, in elements
  std::int64_t column;
};

// Of each row that is not ignored, with p = softmax(logits):
//   loss = (1 - label_smoothing) * (lse - logits[label]) + label_smoothing * (lse - mean(logits)) + z_loss * lse^2
//   grad = grad_scale * its gradient
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
  double grad_scale;
  double* loss;  // [rows]; 0 where ignored
  double* lse;   // [rows]; 0 where ignored
};

}  // namespace fusestep
