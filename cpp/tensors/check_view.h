// Checks of one view, or of two, that every operation on tensors needs.
#pragma once

#include <string>

#include "tensors/check.h"
#include "tensors/view.h"

namespace fusestep {

// Refuses an array that cannot be changed in place: read-only, or with elements that share memory.
void check_writable(const TensorView& view, const Argument& argument);

// Refuses a view that is not shaped like `model`, or not on its device. `whose` says what the model is.
void check_like(const TensorView& view, const TensorView& model, const Argument& argument,
                const std::string& whose = "its parameter");

}  // namespace fusestep
