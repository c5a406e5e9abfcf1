// From the tensor cores' accumulators to rows in global memory, by way of shared memory: there a thread finds
// neighbouring columns, which it writes at once.
#pragma once

#include <cstdint>

#include "cuda/attention/tile.h"

namespace fusestep::cuda {

// Where the results of a group of threads go.
struct RowsInMemory {
  const HeadTensor& tensor;
  std::int64_t batch;
  std::int64_t head;
  std::int64_t first;  // row of the group's first one
  int rows;            // that exist, from there on
  int columns;         // that exist
};

// `factor` times the group's 64 rows of kWidth columns, from column `first_column` on. stage: memory of the group
// alone. thread: of the group. barrier: the group's. kPermuted: rows are keys, in the order of key_at.
template <class S, bool kPermuted, int kCount>
__device__ __forceinline__ void store_rows(const RowsInMemory& to, int first_column, const float (&sum)[kCount],
                                           const float (&factor)[2], const Tile<64, 64>& stage, int thread,
                                           int barrier) {
  const auto own_row = static_cast<int>(opaque(static_cast<std::uint32_t>(thread / 32 * 16 + thread % 32 / 4)));
  constexpr int kPartColumns = kCount < 32 ? 2 * kCount : 64;
  constexpr int kChunks = kPartColumns / 8;
  constexpr int kParts = 2 * kCount / kPartColumns;
  const std::uint32_t own = stage.chunk(own_row, 0) + 4 * (thread % 4);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = kPartColumns / 2 * part + 4 * j + 2 * r;
        store_shared((own ^ static_cast<std::uint32_t>(j << 4)) + 1024 * r,
                     packed<S>(sum[i] * factor[r], sum[i + 1] * factor[r]));
      }
    }
    wait_for_each_other(barrier, 128);
    const int chunk = thread % kChunks;
    const int column = first_column + kPartColumns * part + 8 * chunk;
    const HeadTensor& tensor = to.tensor;
    auto* const data = static_cast<std::uint16_t*>(tensor.data) + tensor.offset(to.batch, to.head) +
                       to.first * tensor.row + column * tensor.column;
    const bool vectors = tensor.column == 1 && tensor.row % 8 == 0 && column + 8 <= to.columns &&
                         reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
#pragma unroll 1
    for (int row = thread / kChunks; row < 64; row += 128 / kChunks) {
      const int of_group = kPermuted ? key_at(row) : row;
      if (of_group >= to.rows) continue;
      const uint4 words = load_shared_16_bytes(stage.chunk(row, chunk));
      auto* const at = data + of_group * tensor.row;
      if (vectors) {
        *reinterpret_cast<uint4*>(at) = words;
        continue;
      }
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i < to.columns) at[i * tensor.column] = static_cast<std::uint16_t>(word[i / 2] >> (i % 2 * 16));
      }
    }
    if (part + 1 < kParts) wait_for_each_other(barrier, 128);
  }
}

}  // namespace fusestep::cuda
