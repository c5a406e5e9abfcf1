// The seed of a dropout mask: an int, or a tensor that the kernels read where they draw.
#pragma once

#include "bindings/options.h"
#include "bindings/tensor.h"
#include "operations/dropout_seed.h"

namespace fusestep {

inline SeedOption read_seed(py::handle value, TensorReader& reader, const char* operation) {
  const Argument argument{operation, "seed"};
  if (!PyLong_Check(value.ptr()) && py::hasattr(value, "__dlpack__")) {
    return {0, reader.read(value, argument, Dtypes::integers)};
  }
  return {read_unsigned(value, UINT64_MAX, argument), std::nullopt};
}

}  // namespace fusestep
