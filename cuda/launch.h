// The one way to start a kernel: each takes one struct of arguments. On a GPU it is a launch; in the tests on a machine
// without one (tests/cuda/emulation) the same kernel runs on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/errors.h"
#if !defined(__CUDACC__)
#include "emulation.h"
#endif

namespace fusestep::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// More has to be asked for before the launch: 48 KB, less what a kernel's own variables may take.
inline constexpr std::size_t kSharedBytesOfAnyKernel = 44 * 1024;

// The block's shared memory beside its variables, aligned to 1,024 bytes: what the swizzle of tiles counts from. A
// launch asks for 1,024 bytes more than it needs.
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ unsigned char memory[];
#else
  unsigned char* memory = emulation::shared_memory;
#endif
  return reinterpret_cast<unsigned char*>((reinterpret_cast<std::uintptr_t>(memory) + 1023) & ~std::uintptr_t(1023));
}

// `blocks` of `threads` threads in one dimension; none at all where there is nothing to do. shared_bytes: of the memory
// that dynamic_shared_memory() finds.
template <class Arguments>
void launch(const char* name, void (*kernel)(Arguments), std::int64_t blocks, int threads,
            [[maybe_unused]] cudaStream_t stream, Arguments arguments, [[maybe_unused]] std::size_t shared_bytes = 0) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw CudaError(std::string("fusestep on CUDA: ") + name + ": more than 2^31 - 1 blocks.");
  const dim3 grid(static_cast<unsigned>(blocks));
  const dim3 block(static_cast<unsigned>(threads));
#if defined(__CUDACC__)
  void* pointers[] = {&arguments};
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kSharedBytesOfAnyKernel) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  check(cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream), name);
#else
  emulation::run(name, grid, block, [&] { kernel(arguments); });
#endif
}

}  // namespace fusestep::cuda
