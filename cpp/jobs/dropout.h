// Plain dropout of one tensor, with a residual or without.
#pragma once

#include <cstdint>

#include "math/dropout.h"
#include "tensors/strided_layout.h"
#include "tensors/view.h"

namespace fusestep {

// Elements are counted in C order, whatever the layout.
struct DropoutJob {
  const void* input;
  const void* residual;         // nullptr: there is none to add
  void* out;                    // may be input or residual
  const StridedLayout* layout;  // of input, out and residual, in C order; nullptr: all are C-contiguous
  std::int64_t numel;
  DType dtype;
  DropoutRule rule;
};

}  // namespace fusestep
