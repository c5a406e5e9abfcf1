// In which order the blocks of the backward pass add to the gradient of the queries: fixed by positions alone, so that
// the bits are the same in every run.
//
// A block holds a tile of keys and visits the tiles of queries that attend to any of them. In what way it begins
// decides how long others wait for it.
//
// Rotating: where every tile of queries attends to every tile of keys, key tile j of n begins at query tile j * m / n
// of m and goes around. So all blocks add to different tiles at any moment, and nobody waits. As they wait for each
// other in a circle, all n have to run at the same time.
//
// In order: elsewhere, key tile j begins with its first query tile and goes on to its last. For tiles that both visit,
// j comes after j + 1, which under a causal mask begins later in the sequence and so comes by first. Blocks with
// larger j start earlier (tickets), so a block waits for blocks that already run.
#pragma once

#include "cuda/attention/arguments.h"

namespace fusestep::cuda {

// kQueryTile, kKeyTile: rows of a tile. resident: blocks that surely run at the same time.
template <int kQueryTile, int kKeyTile>
class Turns {
 public:
  __device__ __forceinline__ void begin(const AttentionSequence& sequence, std::int64_t resident) {
    band_ = sequence.band;
    query_tiles_ = tiles_in(sequence.queries, kQueryTile);
    key_tiles_ = tiles_in(sequence.band.keys, kKeyTile);
    const Visit first = visit(0);
    const Visit last = visit(key_tiles_ - 1);
    rotates_ = key_tiles_ > 0 && key_tiles_ <= resident && first.begin == 0 && last.begin == 0 &&
               first.end == query_tiles_ && last.end == query_tiles_;
  }

  struct Visit {
    int begin;
    int end;
  };

  __device__ __forceinline__ bool rotates() const { return rotates_; }
  __device__ __forceinline__ int key_tiles() const { return key_tiles_; }

  // The tiles of queries that attend to key tile j.
  __device__ __forceinline__ Visit visit(int j) const {
    const std::int64_t key = static_cast<std::int64_t>(j) * kKeyTile;
    return tiles_of(band_.queries_of(key, key + kKeyTile - 1), kQueryTile);
  }

  // The query tile that key tile j visits as its number `step`.
  __device__ __forceinline__ int at_step(int j, const Visit& visit, int step) const {
    if (!rotates_) return visit.begin + step;
    const int tile = begin_of(j) + step;
    return tile < query_tiles_ ? tile : tile - query_tiles_;
  }

  // How many key tiles add to query tile i.
  __device__ __forceinline__ int count(int i) const {
    const Visit keys = keys_of(i);
    return keys.end - keys.begin;
  }

  // How many of them come before j.
  __device__ __forceinline__ int before(int j, int i) const {
    if (!rotates_) return keys_of(i).end - 1 - j;
    // The last key tile that begins at or before i is first, then those before it, then around from the last one.
    const auto first =
        static_cast<int>(((static_cast<std::int64_t>(i) + 1) * key_tiles_ + query_tiles_ - 1) / query_tiles_ - 1);
    return j <= first ? first - j : first - j + key_tiles_;
  }

 private:
  __device__ __forceinline__ static int tiles_in(std::int64_t rows, int size) {
    return static_cast<int>((rows + size - 1) / size);
  }

  __device__ __forceinline__ int begin_of(int j) const {
    return static_cast<int>(static_cast<std::int64_t>(j) * query_tiles_ / key_tiles_);
  }

  // The key tiles that query tile i attends to.
  __device__ __forceinline__ Visit keys_of(int i) const {
    const std::int64_t query = static_cast<std::int64_t>(i) * kQueryTile;
    const std::int64_t last = (query + kQueryTile < band_.queries ? query + kQueryTile : band_.queries) - 1;
    return tiles_of(band_.keys_of(query, last), kKeyTile);
  }

  __device__ __forceinline__ static Visit tiles_of(const PositionRange& rows, int size) {
    if (rows.end <= rows.begin) return {0, 0};
    return {static_cast<int>(rows.begin / size), tiles_in(rows.end, size)};
  }

  Band band_;
  int query_tiles_;
  int key_tiles_;
  bool rotates_;
};

}  // namespace fusestep::cuda
