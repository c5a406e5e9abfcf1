// The only place that chooses a backend: by the device of a tensor, and on the CPU by its instruction sets.
#pragma once

#include <string>
#include <vector>

#include "backend/backend.h"
#include "tensors/check.h"

namespace fusestep {

// The backend for tensors on `device`. Refuses, naming `argument`, a device that this build has no backend for.
const Backend& backend_for(Device device, const Argument& argument);

// Chooses the CPU's level: the highest that the CPU has, or the one that FUSESTEP_SIMD names. Throws
// std::runtime_error when it names none, or one that this CPU or this build lacks. To be called before anything else.
void choose_simd_level();

std::vector<std::string> compiled_simd_levels();
const char* simd_level();

// What was compiled for CUDA, and which devices this machine has: nothing where there is no CUDA backend.
struct CudaInfo {
  std::vector<std::string> architectures;
  std::vector<std::string> devices;
  std::vector<std::string> attention;
};
CudaInfo cuda_info();

}  // namespace fusestep
