// What was compiled for CUDA, and which devices this machine has.
#pragma once

#include <string>
#include <vector>

namespace fusestep::cuda {

// As CMake names them: "80-real", "90a-real", "80-virtual" (PTX).
std::vector<std::string> architectures();

// Which kernels 16-bit attention has, of those: "sm_90a: wgmma", "sm_80 and later: mma.sync".
std::vector<std::string> attention_paths();

// "NVIDIA H200 (compute capability 9.0)", one for each device; none where there is no driver.
std::vector<std::string> devices();

// Why kernels cannot run on the device, or nothing. It is asked once for each device.
std::string obstacle_of(int device);

}  // namespace fusestep::cuda
