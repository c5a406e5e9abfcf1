// The clipping options, the same for every optimizer: {"max_grad_norm": 1.0, "on_nonfinite": "skip", ...}.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/tensor.h"
#include "jobs/clipping.h"

namespace fusestep {

// `max_norm` is what the operation calls the ceiling.
Clipping read_clipping(const pybind11::dict& given, const char* operation, const char* max_norm = "max_grad_norm");

// 1, 2 or infinity.
NormKind read_norm_kind(pybind11::handle value, const char* operation);

// The parts of a norm's sum, or None.
TensorView read_totals(pybind11::handle totals, TensorReader& reader, const char* operation);

}  // namespace fusestep
