// The options of attention and of the masked softmax: {"mask": array, "causal": "top_left", "dropout_p": 0.1, ...}.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/tensor.h"
#include "operations/attention.h"

namespace fusestep {

// Keys that are missing, or None, keep their defaults. Arrays are held by the reader.
AttentionOptions read_attention_options(const pybind11::dict& given, TensorReader& reader, const char* operation);

}  // namespace fusestep
