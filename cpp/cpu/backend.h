#pragma once

#include "backend/backend.h"

namespace fusestep {

// The CPU's: the chosen instruction set's kernels (cpu_kernels.h) on all threads.
extern const Backend kCpuBackend;

}  // namespace fusestep
