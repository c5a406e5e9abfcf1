// The one way to start a kernel: each takes one struct of arguments. On a GPU it is a launch; in the tests on a machine
// without one (tests/cuda/emulation) the same kernel runs on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/errors.h"
#if !defined(__CUDACC__)
#include "emulation.h"
#endif

namespace fusestep::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// `blocks` of `threads` threads in one dimension; none at all where there is nothing to do.
template <class Arguments>
void launch(const char* name, void (*kernel)(Arguments), std::int64_t blocks, int threads,
            [[maybe_unused]] cudaStream_t stream, Arguments arguments) {
  if (blocks == 0) return;
  const dim3 grid(static_cast<unsigned>(blocks));
  const dim3 block(static_cast<unsigned>(threads));
#if defined(__CUDACC__)
  void* pointers[] = {&arguments};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, 0, stream), name);
#else
  emulation::run(name, grid, block, [&] { kernel(arguments); });
#endif
}

}  // namespace fusestep::cuda
