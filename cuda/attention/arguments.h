// What the attention kernels are given, and how a block of threads finds its part of the work.
#pragma once

#include <cstdint>

#include "jobs/attention.h"

namespace fusestep::cuda {

// The rows of one side (queries or keys) of all sequences, cut into tiles of `size` rows that begin anew with each
// sequence. Sequences of a batch have equally many; of packed ones the device counts them (count_tiles).
struct Tiles {
  std::int64_t size;
  std::int64_t per_sequence;   // of a batch
  const std::int64_t* before;  // packed: [sequences + 1], tiles of all sequences before; nullptr: a batch
  std::int64_t bound;          // at least as many as there are

  __device__ __forceinline__ std::int64_t first_of(std::int64_t sequence) const {
    return before != nullptr ? before[sequence] : sequence * per_sequence;
  }
};

struct AttentionArguments {
  AttentionJob job;      // its layout's arrays on the device; `sequences` is not used
  AttentionGrads grads;  // of the backward pass
  Tiles query_tiles;
  Tiles key_tiles;
  void* delta;  // (sequences, heads, queries) of float or double, laid out as lse: sum(grad_out * out) of each query
};

// A tile of one head of one sequence.
struct TileOfHead {
  AttentionSequence sequence;
  std::int64_t head;
  std::int64_t tile;  // within the sequence
};

// Sequence and tile of one that is counted over all sequences; false where there is no such tile.
__device__ __forceinline__ bool find_tile(const AttentionLayout& layout, const Tiles& tiles, std::int64_t number,
                                          std::int64_t& sequence, std::int64_t& tile) {
  if (tiles.before == nullptr) {
    sequence = number / tiles.per_sequence;
    tile = number % tiles.per_sequence;
    return sequence < layout.batch;
  }
  std::int64_t low = 0;
  std::int64_t high = layout.count();
  if (number >= tiles.before[high]) return false;
  while (high - low > 1) {  // tiles.before[low] <= number < tiles.before[high]
    const std::int64_t middle = (low + high) / 2;
    (tiles.before[middle] <= number ? low : high) = middle;
  }
  sequence = low;
  tile = number - tiles.before[low];
  return true;
}

}  // namespace fusestep::cuda
