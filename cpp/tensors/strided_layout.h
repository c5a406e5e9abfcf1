// Tensors of one shape that lie differently in memory, visited together.
#pragma once

#include <cstdint>

#include "math/optim/options.h"

namespace fusestep {

inline constexpr int kMaxDims = 16;
inline constexpr int kMaxOperands = 3 + kMaxStates;  // parameter, gradient, states, companion of the parameter

// Dimensions are merged where all operands allow it, and ordered so that the first operand is visited as contiguously
// as it can be.
struct StridedLayout {
  std::int32_t ndim;
  std::int32_t unused;  // in place of padding: CUDA's tables are compared as bytes
  std::int64_t shape[kMaxDims];
  std::int64_t strides[kMaxOperands][kMaxDims];  // in elements
};

}  // namespace fusestep
