// Which weights dropout keeps, in the tensor cores' registers: one Philox call for the eight keys in a row that a
// thread owns of each row.
#pragma once

#include <cstdint>

#include "cuda/attention/scores.h"
#include "math/attention/dropout.h"

namespace fusestep::cuda {

class DropoutRows {
 public:
  // query: of the first row, counted within the sequence.
  __device__ __forceinline__ DropoutRows(const AttentionJob& job, const AttentionSequence& sequence, std::int64_t head,
                                         int query)
      : dropout_(job.dropout, sequence.batch * job.heads + head), threshold_(job.dropout.threshold << 16) {
#pragma unroll
    for (int r = 0; r < 2; ++r) rows_[r] = dropout_.query(static_cast<std::uint32_t>(query + 8 * r));
  }

  // Calls drop(element) for each accumulator whose weight is dropped, of keys `first` to first + kKeys - 1.
  template <int kKeys, class Drop>
  __device__ __forceinline__ void for_each_dropped(int first, const Drop& drop) const {
#pragma unroll
    for (int block = 0; block < kKeys / 32; ++block) {
      const auto group = static_cast<std::uint32_t>(first / kDropoutGroup + 4 * block) + threadIdx.x % 4;
      const DropoutKeys<std::uint32_t> keys = dropout_.keys(group);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const PhiloxWords<std::uint32_t> words = dropout_.words(rows_[r], keys);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // Both halves are compared without unpacking. A threshold of 2^16 (all is dropped) has become 0 and drops
          // nothing here: the scale of what is kept is 0 then.
          if (words.word[j] << 16 < threshold_) drop(element_of(block, r, 2 * j));
          if (words.word[j] < threshold_) drop(element_of(block, r, 2 * j + 1));
        }
      }
    }
  }

 private:
  AttentionDropout dropout_;
  DropoutQuery<std::uint32_t> rows_[2];
  std::uint32_t threshold_;
};

}  // namespace fusestep::cuda
