// Every call of the CUDA runtime is checked, and its failure says which call or kernel it was.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fusestep::cuda {

// Python's RuntimeError.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `what`: the kernel, or what was asked of the runtime.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error: the next call that asks must not find this one
  std::string text = std::string("fusestep on CUDA: ") + what + ": " + cudaGetErrorName(error) + ", " +
                     cudaGetErrorString(error) + ".";
  if (error == cudaErrorMemoryAllocation)
    text += " Free memory on the device: torch.cuda.empty_cache() gives back torch's.";
  if (error == cudaErrorIllegalAddress) text += " Run with CUDA_LAUNCH_BLOCKING=1 to see whose kernel it was.";
  throw CudaError(text);
}

}  // namespace fusestep::cuda
