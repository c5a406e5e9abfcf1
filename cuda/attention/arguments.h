// What the attention kernels are given, and how a block of threads finds its part of the work.
#pragma once

#include <cuda_runtime.h>

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

// Where the blocks of the backward pass add up the gradient of the queries.
struct QuerySums {
  std::uint32_t* ticket;  // the number of the next block: later ones may wait for earlier ones
  std::uint32_t* turns;   // [units][tiles of a unit][groups]: key tiles that have added to a tile of queries
  float* sums;            // [slots][tiles of a unit][kGroups][...]: of 64 queries each
  std::int64_t slots;     // units that can be under way at once; unit u has slot u % slots
  std::int64_t tiles;     // of a unit: its heads' tiles of queries
  std::int64_t resident;  // blocks that surely run at the same time
};

struct AttentionArguments {
  AttentionJob job;      // its layout's arrays on the device; `sequences` is not used
  AttentionGrads grads;  // of the backward pass
  Tiles query_tiles;
  Tiles key_tiles;
  void* delta;           // float, or double for float64: see delta_at
  QuerySums query_sums;  // on tensor cores

  // Where delta, sum(grad_out * out) of a query, stands. row: among all rows of a packed array.
  __device__ __forceinline__ std::int64_t delta_at(std::int64_t batch, std::int64_t head, std::int64_t row) const {
    return ((job.layout.packed ? 0 : batch) * job.heads + head) * job.layout.queries + row;
  }
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
