// Rows of an array in the forms that products of tiles read. Every form has whole tiles: zeros stand where the array
// ends.
//   rows                 [row][column]: the left factor of rows . x
//   transposed           [column][32 rows]: the left factor of rows^T . x
//   pairs of rows        tiles [16 columns] of [16 pairs of rows][16 columns][2]: the right factor of x . rows
//   pairs of columns     tiles [16 rows][32 columns] of [16 pairs of columns][16 rows][2]: the right factor of x .
//   rows^T
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/tiles.h"
#include "jobs/attention.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

inline constexpr std::int64_t kTile = 512;  // elements: 16 rows of 64 bytes

// Columns in scratch and in packed arrays: whole steps of a product.
FUSESTEP_HD std::int64_t padded(std::int64_t dim) { return (dim + kTileBlock - 1) / kTileBlock * kTileBlock; }

// to[column][row] = from[row][column] of floats; rows and columns are multiples of every vector's width.
inline void transpose_floats(const float* from, std::int64_t from_row, std::int64_t rows, std::int64_t columns,
                             float* to, std::int64_t to_row) {
  using V = Vec<float>;
  constexpr int kWidth = V::kWidth;
  for (std::int64_t row = 0; row < rows; row += kWidth) {
    for (std::int64_t column = 0; column < columns; column += kWidth) {
      V x[kWidth];
      for (int i = 0; i < kWidth; ++i) x[i] = V::load(from + (row + i) * from_row + column);
      transpose(x);
      for (int i = 0; i < kWidth; ++i) x[i].store(to + (column + i) * to_row + row);
    }
  }
}

// 16 rows of 16 words each, as floats: no bit of them changes.
struct WordTile {
  float words[16][16];
};

FUSESTEP_HD void load_words(WordTile& tile, const BFloat16* from, std::int64_t row) {
  for (int r = 0; r < 16; ++r) memcpy(tile.words[r], from + r * row, sizeof tile.words[r]);
}
FUSESTEP_HD void store_words(const WordTile& tile, BFloat16* to, std::int64_t row) {
  for (int r = 0; r < 16; ++r) memcpy(to + r * row, tile.words[r], sizeof tile.words[r]);
}
FUSESTEP_HD void transpose_words(WordTile& tile) {
  WordTile turned;
  transpose_floats(tile.words[0], 16, 16, 16, turned.words[0], 16);
  tile = turned;
}

// Word c of row r: columns c of rows 2 r and 2 r + 1.
FUSESTEP_HD void pair_rows(WordTile& tile, const BFloat16* from, std::int64_t row) {
  using V = Vec<float>;
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; c += V::kWidth) {
      const auto even = as_words(V::load(from + 2 * r * row + c));
      const auto odd = as_words(V::load(from + (2 * r + 1) * row + c));
      as_float(odd | even >> 16).store(tile.words[r] + c);
    }
  }
}

// 32 rows of an array, from the element at `offset` on; `rows` of them are there.
inline void pack_rows(const HeadTensor& tensor, std::int64_t offset, std::int64_t rows, std::int64_t columns,
                      BFloat16* to) {
  const std::int64_t stride = padded(columns);
  const auto* from = static_cast<const BFloat16*>(tensor.data) + offset;
  for (std::int64_t r = 0; r < kTileBlock; ++r) {
    BFloat16* row = to + r * stride;
    const std::int64_t count = r < rows ? columns : 0;
    const BFloat16* at = from + r * tensor.row;
    if (tensor.column == 1 && count != 0) {
      memcpy(row, at, static_cast<std::size_t>(count) * sizeof *row);
    } else {
      for (std::int64_t c = 0; c < count; ++c) row[c] = at[c * tensor.column];
    }
    memset(row + count, 0, static_cast<std::size_t>(stride - count) * sizeof *row);
  }
}

// The other forms, from 32 packed rows of `columns` columns (a multiple of 32).
inline void pack_pairs_of_columns(const BFloat16* rows, std::int64_t columns, BFloat16* to) {
  for (std::int64_t row = 0; row < kTileBlock; row += 16) {
    for (std::int64_t column = 0; column < columns; column += kTileBlock) {
      WordTile tile;
      load_words(tile, rows + row * columns + column, columns);
      transpose_words(tile);
      store_words(tile, to, 32);
      to += kTile;
    }
  }
}
inline void pack_pairs_of_rows(const BFloat16* rows, std::int64_t columns, BFloat16* to) {
  for (std::int64_t column = 0; column < columns; column += 16) {
    WordTile tile;
    pair_rows(tile, rows + column, columns);
    store_words(tile, to, 32);
    to += kTile;
  }
}
inline void pack_transposed(const BFloat16* rows, std::int64_t columns, BFloat16* to) {
  for (std::int64_t column = 0; column < columns; column += 16) {
    WordTile tile;
    pair_rows(tile, rows + column, columns);
    transpose_words(tile);
    store_words(tile, to + column * kTileBlock, kTileBlock);
  }
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
