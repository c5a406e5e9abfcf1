// The threads that share a row: a warp, or a whole block.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace fusestep::cuda {

template <int kThreads>
struct RowThreads {
  static_assert(kThreads % 32 == 0);

  static __device__ __forceinline__ int index() { return static_cast<int>(threadIdx.x) % kThreads; }

  // Until all are here, and see what the others wrote before.
  static __device__ __forceinline__ void wait() {
    if constexpr (kThreads > 32) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // `combine` of the values of all, in every thread; one order for all, so that all have the same bits.
  template <class T, class Combine>
  static __device__ __forceinline__ T over_all(T value, const Combine& combine) {
    for (int half = 16; half > 0; half /= 2) value = combine(value, __shfl_xor_sync(kWholeWarp, value, half));
    if constexpr (kThreads > 32) {
      __shared__ T of_warp[kThreads / 32];
      __syncthreads();  // until all have read what was here before
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
      __syncthreads();
      value = of_warp[0];
      for (int warp = 1; warp < kThreads / 32; ++warp) value = combine(value, of_warp[warp]);
    }
    return value;
  }

  template <class T>
  static __device__ __forceinline__ T sum(T value) {
    return over_all(value, [](T a, T b) { return a + b; });
  }
  template <class T>
  static __device__ __forceinline__ T greatest(T value) {
    return over_all(value, [](T a, T b) { return max(a, b); });
  }
};

}  // namespace fusestep::cuda
