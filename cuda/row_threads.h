// The threads that share a row: a warp of a block, or the whole block.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace fusestep::cuda {

class RowThreads {
 public:
  static constexpr int kMost = 1024;

  // count: 32, or more if the block has as many threads; a power of two.
  __device__ __forceinline__ explicit RowThreads(int count) : count_(count) {}

  __device__ __forceinline__ int count() const { return count_; }
  __device__ __forceinline__ int index() const { return static_cast<int>(threadIdx.x) & (count_ - 1); }

  // Until all are here, and see what the others wrote before.
  __device__ __forceinline__ void wait() const {
    if (count_ > kWarp) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  template <class T>
  __device__ __forceinline__ T sum(T value) const {
    return over_all(value, [](T a, T b) { return a + b; });
  }
  template <class T>
  __device__ __forceinline__ T greatest(T value) const {
    return over_all(value, [](T a, T b) { return max(a, b); });
  }

 private:
  static constexpr int kWarp = 32;

  // `combine` of the values of all, in every thread; one order for all, so that all have the same bits.
  template <class T, class Combine>
  __device__ __forceinline__ T over_all(T value, const Combine& combine) const {
    for (int half = kWarp / 2; half > 0; half /= 2) value = combine(value, __shfl_xor_sync(kWholeWarp, value, half));
    if (count_ == kWarp) return value;
    __shared__ T of_warp[kMost / kWarp];
    __syncthreads();  // until all have read what was here before
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < count_ / kWarp; ++warp) value = combine(value, of_warp[warp]);
    return value;
  }

  int count_;
};

}  // namespace fusestep::cuda
