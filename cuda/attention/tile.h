// Tiles of 16-bit elements in shared memory, and how they get there.
#pragma once

#include <cstdint>

#include "cuda/attention/hardware.h"
#include "jobs/attention.h"

namespace fusestep::cuda {

// Keys do not lie in order. In the tensor cores' results a thread owns columns 2 t and 2 t + 1 of each eight, t = 0
// to 3. So if position 8 j + 2 t + c of 32 holds key 8 t + 2 j + c, a thread owns eight keys in a row: those that share
// a Philox call, and 16 bytes of an additive mask. The products do not notice: keys and values are permuted alike.
inline constexpr int kKeyGroup = 8;
inline constexpr int kPermutedKeys = 32;

// A permutation of the bits of the position: the keys of disjoint bits add up.
FUSESTEP_HD constexpr int key_at(int position) {
  return (position & ~31) + 8 * ((position & 7) / 2) + 2 * ((position / 8) & 3) + (position & 1);
}

// kRows rows of kColumns elements, in panels of 64 columns, each [kRows][64]. The eight chunks of 16 bytes of a panel's
// row lie exchanged by the row's number (the hardware's 128-byte swizzle), so that one column of eight rows touches all
// banks. `address` is a multiple of 1,024.
template <int kRows_, int kColumns_>
struct Tile {
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kPanelBytes = kRows * 128;
  static constexpr int kBytes = kPanelBytes * kColumns / 64;
  static_assert(kRows % 8 == 0 && kColumns % 64 == 0);

  std::uint32_t address;

  // Of elements 8 * chunk and on of a row. `more`: a number to be exchanged with chunk's bits (0 or 1 with an even
  // chunk), for those who know chunk when they are compiled.
  __device__ __forceinline__ std::uint32_t chunk(int row, int chunk, int more = 0) const {
    const auto in_panel = static_cast<std::uint32_t>(row * 128 + (((row & 7) ^ more) << 4));
    return address + static_cast<std::uint32_t>(chunk / 8 * kPanelBytes) +
           (in_panel ^ static_cast<std::uint32_t>(chunk % 8 << 4));
  }
};

// Copies the rows of one head of one sequence, a tile at a time, by kThreads threads of which this is number `thread`.
// Tile has the rows in order, or permuted as keys are. Machine: of products.h.
template <class Machine, class Tile, int kThreads, bool kPermuted>
class RowCopier {
 public:
  __device__ __forceinline__ RowCopier(const HeadTensor& tensor, std::int64_t batch, std::int64_t head,
                                       std::int64_t begin, std::int64_t rows, std::int64_t columns, int thread)
      : tensor_(tensor), rows_(static_cast<int>(rows)) {
    const int chunk = thread % kChunks;
    const int row = thread / kChunks;
    const auto elements = static_cast<int>(columns) - 8 * chunk;  // that exist, from the thread's chunk on
    bytes_ = elements <= 0 ? 0 : elements >= 8 ? 16 : 2 * elements;
    const auto* data = static_cast<const std::uint16_t*>(tensor.data) + tensor.offset(batch, head) + begin * tensor.row;
    // Strides of 2^31 bytes do not fit the copies' addresses.
    vectors_ = (tensor.column == 1 || columns == 1) && tensor.row % 8 == 0 &&
               reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && tensor.row < INT32_MAX / 2 &&
               tensor.row > INT32_MIN / 2;
    first_row_ = kPermuted ? key_at(row) : row;
    from_ = data + first_row_ * tensor.row + (bytes_ == 0 ? 0 : 8 * chunk * tensor.column);
  }

  // Rows `begin` and on; rows and columns that do not exist become zeros. Arrives once the copies are done.
  __device__ __forceinline__ void copy(const Tile& tile, int begin, int thread, Barrier& barrier) const {
    const int chunk = thread % kChunks;
    const int row = thread / kChunks;
    const std::uint16_t* from = from_ + begin * tensor_.row;
    const int exist = rows_ - begin - first_row_;
    if (vectors_) {
      const auto* bytes_from = reinterpret_cast<const char*>(from);
      const int row_bytes = static_cast<int>(tensor_.row) * 2;
#pragma unroll 4
      for (int step = 0; step < Tile::kRows; step += kRowsAtOnce) {
        const int source = kPermuted ? key_at(step) : step;
        copy_16_bytes(tile.chunk(row + step, chunk), bytes_from + static_cast<std::int64_t>(source) * row_bytes,
                      source < exist ? bytes_ : 0);
      }
      Machine::end_copies(barrier);
      return;
    }
#pragma unroll 1
    for (int step = 0; step < Tile::kRows; step += kRowsAtOnce) {
      const int source = kPermuted ? key_at(step) : step;
      std::uint32_t words[4] = {};
      if (source < exist) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (2 * i >= bytes_) break;
          words[i / 2] |= static_cast<std::uint32_t>(from[source * tensor_.row + i * tensor_.column]) << (i % 2 * 16);
        }
      }
      store_shared_16_bytes(tile.chunk(row + step, chunk), words);
    }
    fence_for_wgmma();
    arrive(barrier);
  }

 private:
  static constexpr int kChunks = Tile::kColumns / 8;
  static constexpr int kRowsAtOnce = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && Tile::kRows % kRowsAtOnce == 0);

  const HeadTensor& tensor_;
  const std::uint16_t* from_;  // of the thread's first row and chunk
  int rows_;
  int first_row_;
  int bytes_;  // of 16 that exist
  bool vectors_;
};

}  // namespace fusestep::cuda
