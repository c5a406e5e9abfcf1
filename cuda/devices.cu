#include <cuda_runtime.h>

#include <sstream>

#include "devices.h"

namespace fusestep::cuda {

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream list(FUSESTEP_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

std::vector<std::string> devices() {
  std::vector<std::string> names;
  int count = 0;
  // No driver, or one too old, is no error here: there is no device to use, and that is the answer.
  if (cudaGetDeviceCount(&count) != cudaSuccess) return names;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    names.push_back(std::string(properties.name) + " (compute capability " + std::to_string(properties.major) + "." +
                    std::to_string(properties.minor) + ")");
  }
  return names;
}

}  // namespace fusestep::cuda
