// The online softmax of the two rows that a thread holds: four threads share a row.
#pragma once

#include <cmath>

#include "cuda/attention/hardware.h"
#include "math/attention/score.h"

namespace fusestep::cuda {

class OnlineSoftmax {
 public:
  // Turns scores (times `factor`, in base 2) into weights relative to the greatest score so far. correction: what the
  // sums of earlier weights are to be multiplied with, of each row.
  template <int kCount>
  __device__ __forceinline__ void add(float (&score)[kCount], float factor, float (&correction)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = highest_[r];
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) highest = fmaxf(highest, score[i / 2 * 4 + 2 * r + i % 2]);
      highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, 2));
      const float base = highest == -INFINITY ? 0.0f : highest * factor;  // no key so far: all weights are 0
      correction[r] = fast_exp2(fma(highest_[r], factor, -base));
      highest_[r] = highest;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        float& x = score[i / 2 * 4 + 2 * r + i % 2];
        x = fast_exp2(fma(x, factor, -base));
        sum += x;
      }
      sum_[r] = fma(sum_[r], correction[r], sum);
    }
  }

  // After the last tile: the sums of the whole rows.
  __device__ __forceinline__ void finish(float factor) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += __shfl_xor_sync(kWholeWarp, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(kWholeWarp, sum_[r], 2);
      highest_[r] *= factor;
    }
  }

  __device__ __forceinline__ bool empty(int row) const { return sum_[row] == 0; }
  __device__ __forceinline__ float inverse_sum(int row) const { return empty(row) ? 0.0f : 1.0f / sum_[row]; }
  __device__ __forceinline__ float log_sum_exp(int row) const {
    return empty(row) ? -INFINITY : (highest_[row] + ::log2f(sum_[row])) * static_cast<float>(kLn2);
  }

 private:
  float highest_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {};
};

}  // namespace fusestep::cuda
