// A list of gradients that is read (norm) or rewritten (scale, clamp).
#pragma once

#include <cstdint>

#include "tensors/strided_layout.h"
#include "tensors/view.h"

namespace fusestep {

struct GradTensor {
  void* data;
  const StridedLayout* layout;
  std::int64_t begin;
  DType dtype;
};

struct GradJob {
  const GradTensor* tensors = nullptr;  // [num_tensors], then one more, whose begin is numel
  std::int64_t num_tensors = 0;
  std::int64_t numel = 0;
};

}  // namespace fusestep
