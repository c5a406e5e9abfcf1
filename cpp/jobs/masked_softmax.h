// The arguments of the masked softmax kernels. The same for every backend.
#pragma once

#include <cstdint>

#include "jobs/attention.h"

namespace fusestep {

// Scores that have fewer than four dimensions have strides of 0 for those that are missing.
struct SoftmaxJob {
  DType dtype;  // of scores, out and their gradients
  std::int64_t batch;
  std::int64_t heads;
  std::int64_t queries;
  std::int64_t keys;
  HeadTensor scores;
  HeadTensor out;    // of the forward pass; may be scores
  HeadTensor lse;    // float; double where dtype is. column: 0
  HeadTensor mask;   // stride 0 where broadcast
  DType mask_dtype;  // boolean (false excludes) or additive floats
  double scale;
  DropoutRule dropout;
  const Band* bands;  // [batch]

  FUSESTEP_HD std::int64_t rows() const { return batch * heads * queries; }
};

struct SoftmaxGrads {
  HeadTensor grad_out;
  HeadTensor grad_scores;
  HeadTensor grad_mask;  // data == nullptr: not wanted. Stride 0 where the mask was broadcast
  DType grad_mask_dtype;
  bool mask_has[4];  // batch, head, query, key: those along which the mask was not broadcast; all false without one
};

}  // namespace fusestep
