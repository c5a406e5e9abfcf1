// The seed of a dropout mask, as the caller gave it.
#pragma once

#include <cstdint>
#include <optional>

#include "math/dropout.h"
#include "tensors/check.h"
#include "tensors/view.h"

namespace fusestep {

struct SeedOption {
  std::uint64_t number = 0;
  std::optional<TensorView> tensor;  // instead of the number
};

// Refuses a tensor that is not a single int64 on `device`, where the mask is drawn.
DropoutSeed checked_seed(const SeedOption& seed, Device device, const Argument& argument);

}  // namespace fusestep
