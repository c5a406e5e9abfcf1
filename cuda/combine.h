// Adding up the slices of a norm in one block, in the order of math/norm.h: threads add the groups, the first thread
// adds the groups' totals.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "math/norm.h"

namespace fusestep::cuda {

inline constexpr int kCombineThreads = 256;

// The shared memory that it takes.
struct CombineMemory {
  static constexpr int kGroups = 64;                               // at a time
  static constexpr int kPitch = static_cast<int>(kNormGroup) + 1;  // groups of 64 would lie in the same banks
  double values[kGroups * kPitch];
  double totals[kGroups];
};

// Of the whole block; the result is the first thread's.
template <class Norm>
__device__ __forceinline__ double combine_in_block(const double* partial, std::int64_t slices, CombineMemory& memory) {
  constexpr int kGroups = CombineMemory::kGroups;
  double total = 0;
  for (std::int64_t first = 0; first < slices; first += kGroups * kNormGroup) {
    const std::int64_t left = slices - first;
    const int count = static_cast<int>(left < kGroups * kNormGroup ? left : kGroups * kNormGroup);
    const int groups = (count + static_cast<int>(kNormGroup) - 1) / static_cast<int>(kNormGroup);
    // The reads of neighbours by neighbouring threads, many under way at once.
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      memory.values[i / kNormGroup * CombineMemory::kPitch + i % kNormGroup] = partial[first + i];
    }
    __syncthreads();
    const int group = static_cast<int>(threadIdx.x);
    if (group < groups) {
      const int rest = count - group * static_cast<int>(kNormGroup);
      memory.totals[group] =
          combine_in_order<Norm>(memory.values + group * CombineMemory::kPitch,
                                 rest < static_cast<int>(kNormGroup) ? rest : static_cast<int>(kNormGroup));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int g = 0; g < groups; ++g) total = Norm::combine(total, memory.totals[g]);
    }
    __syncthreads();  // before the next ones come into the same memory
  }
  return total;
}

}  // namespace fusestep::cuda
