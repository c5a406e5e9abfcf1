#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <sstream>

#include "cuda/devices.h"

namespace fusestep::cuda {

namespace {

// 80 of "80-real"
int number_of(const std::string& architecture) { return std::stoi(architecture); }

std::string find_obstacle(int device) {
  int major = 0;
  int minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return "device " + std::to_string(device) + ", of which CUDA says: " + cudaGetErrorString(error);
  }
  // Code for one generation runs on its later members, PTX on every later device.
  const int capability = 10 * major + minor;
  const auto names = architectures();
  const bool runs = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    const int compiled = number_of(name);
    const bool ptx = name.find("real") == std::string::npos;
    return compiled <= capability && (ptx || compiled / 10 == major);
  });
  if (runs) return "";
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return "device " + std::to_string(device) + " of compute capability " + std::to_string(major) + "." +
         std::to_string(minor) + ", where " + list + " were compiled";
}

}  // namespace

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream list(FUSESTEP_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

std::vector<std::string> attention_paths() {
  std::vector<std::string> paths;
  bool hopper = false;
  bool others = false;
  for (const std::string& name : architectures()) (name.find('a') == 2 ? hopper : others) = true;  // as in "90a-real"
  if (hopper) paths.emplace_back("sm_90a: wgmma");
  if (others) paths.emplace_back("sm_80 and later: mma.sync");
  return paths;
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

std::string obstacle_of(int device) {
  static std::mutex mutex;
  static std::map<int, std::string> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  return known[device] = find_obstacle(device);
}

}  // namespace fusestep::cuda
