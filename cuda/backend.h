// The CUDA backend, for dispatch.cpp.
#pragma once

#include "backend/backend.h"
#include "tensors/check.h"

namespace fusestep::cuda {

// For tensors on that device. Refuses, naming `argument`, a device for which nothing here was compiled.
const Backend& backend_for(Device device, const Argument& argument);

}  // namespace fusestep::cuda
