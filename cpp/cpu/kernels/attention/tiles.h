// Converts pieces of the arrays to the form that the products take: contiguous rows of float or double, transposed
// queries, masks as bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "jobs/attention.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// One element, converted to the type that the caller computes in.
template <class T>
FUSESTEP_HD T widen(float x) {
  return static_cast<T>(x);
}
template <class T>
FUSESTEP_HD T widen(double x) {
  return static_cast<T>(x);
}
template <class T>
FUSESTEP_HD T widen(BFloat16 x) {
  return static_cast<T>(to_float(x));
}
template <class T>
FUSESTEP_HD T widen(Float16 x) {
  return static_cast<T>(to_float(x));
}

// Calls run(typed pointer) with the element at `offset`.
template <class Run>
FUSESTEP_HD void with_elements(const void* data, DType dtype, std::int64_t offset, const Run& run) {
  switch (dtype) {
    case DType::float32:
      return run(static_cast<const float*>(data) + offset);
    case DType::float64:
      return run(static_cast<const double*>(data) + offset);
    case DType::float16:
      return run(static_cast<const Float16*>(data) + offset);
    case DType::bfloat16:
      return run(static_cast<const BFloat16*>(data) + offset);
    default:
      return;  // a job holds floats, and boolean masks
  }
}

// The ALiBi slope of a head; 0 without. Tokens of no sequence have none either: there would be nothing to read.
inline double slope_of(const AttentionJob& job, const AttentionSequence& sequence, std::int64_t head) {
  double slope = 0;
  if (job.alibi.data == nullptr || sequence.band.keys == 0) return slope;
  with_elements(job.alibi.data, job.alibi_dtype, job.alibi.offset(sequence.batch, head),
                [&](const auto* from) { slope = widen<double>(*from); });
  return slope;
}

// Whether a vector of neighbouring elements can be loaded. A float kernel reads doubles only as ALiBi slopes, never
// here.
template <class T, class S>
inline constexpr bool kLoads = !(sizeof(T) < sizeof(S));

template <class T, class S>
FUSESTEP_HD void load_row(T* to, const S* from, std::int64_t stride, std::int64_t count) {
  using V = Vec<T>;
  std::int64_t i = 0;
  if constexpr (kLoads<T, S>) {
    if (stride == 1) {
      for (; i + V::kWidth <= count; i += V::kWidth) V::load(from + i).store(to + i);
    }
  }
  for (; i < count; ++i) to[i] = widen<T>(from[i * stride]);
}

// A piece of an array as rows that the products can read: the array itself where possible, else a copy in `buffer`.
template <class T>
struct Rows {
  const T* data;
  std::int64_t stride;
};

template <class T>
inline constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::float64 : DType::float32;

// The copy's rows are buffer_stride apart and zero beyond `columns`.
template <class T>
void copy_rows(T* buffer, std::int64_t buffer_stride, const HeadTensor& tensor, DType dtype, std::int64_t offset,
               std::int64_t rows, std::int64_t columns) {
  with_elements(tensor.data, dtype, offset, [&](const auto* from) {
    for (std::int64_t r = 0; r < rows; ++r) {
      T* to = buffer + r * buffer_stride;
      load_row(to, from + r * tensor.row, tensor.column, columns);
      for (std::int64_t c = columns; c < buffer_stride; ++c) to[c] = 0;
    }
  });
}

template <class T>
FUSESTEP_HD Rows<T> rows_of(T* buffer, std::int64_t buffer_stride, const HeadTensor& tensor, DType dtype,
                            std::int64_t offset, std::int64_t rows, std::int64_t columns) {
  if (dtype == kDTypeOf<T> && tensor.column == 1 && buffer_stride == columns) {
    return {static_cast<const T*>(tensor.data) + offset, tensor.row};
  }
  copy_rows(buffer, buffer_stride, tensor, dtype, offset, rows, columns);
  return {buffer, buffer_stride};
}

template <class T>
FUSESTEP_HD void transpose(Vec<T> (&x)[Vec<T>::kWidth]) {
  constexpr int kWidth = Vec<T>::kWidth;
  T rows[kWidth][kWidth];
  T columns[kWidth][kWidth];
  for (int i = 0; i < kWidth; ++i) x[i].store(rows[i]);
  for (int i = 0; i < kWidth; ++i) {
    for (int j = 0; j < kWidth; ++j) columns[j][i] = rows[i][j];
  }
  for (int i = 0; i < kWidth; ++i) x[i] = Vec<T>::load(columns[i]);
}

// Calls sink(column, row, vector) with neighbouring rows of each column in a vector; lanes beyond `rows` are zero.
template <class T, class S, class Sink>
FUSESTEP_HD void for_each_column(const S* from, std::int64_t row_stride, std::int64_t column_stride, std::int64_t rows,
                                 std::int64_t columns, const Sink& sink) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  for (std::int64_t row = 0; row < rows; row += kWidth) {
    const S* part = from + row * row_stride;
    std::int64_t column = 0;
    if constexpr (kLoads<T, S>) {
      if (row_stride == 0) {
        for (; column < columns; ++column) sink(column, row, V(widen<T>(part[column * column_stride])));
      } else if (rows - row >= kWidth && row_stride == 1) {
        for (; column < columns; ++column) sink(column, row, V::load(part + column * column_stride));
      } else if (rows - row >= kWidth && column_stride == 1) {
        for (; column + kWidth <= columns; column += kWidth) {
          V x[kWidth];
          for (int i = 0; i < kWidth; ++i) x[i] = V::load(part + i * row_stride + column);
          transpose(x);
          for (int i = 0; i < kWidth; ++i) sink(column + i, row, x[i]);
        }
      }
    }
    for (; column < columns; ++column) {
      T lanes[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        lanes[i] = row + i < rows ? widen<T>(part[i * row_stride + column * column_stride]) : T(0);
      }
      sink(column, row, V::load(lanes));
    }
  }
}

// Which of 32 neighbouring positions, the first being 0, lie in [begin, end).
FUSESTEP_HD std::uint32_t bits_between(std::int64_t begin, std::int64_t end) {
  begin = begin < 0 ? 0 : begin > 32 ? 32 : begin;
  end = end < begin ? begin : end > 32 ? 32 : end;
  return static_cast<std::uint32_t>((std::uint64_t{1} << end) - (std::uint64_t{1} << begin));
}

// Which of `count` (at most 32) booleans are true.
FUSESTEP_HD std::uint32_t bits_of_booleans(const std::uint8_t* from, std::int64_t stride, std::int64_t count) {
  if (stride == 1 && count == 32) return nonzero_bytes(from);
  std::uint32_t bits = 0;
  for (std::int64_t i = 0; i < count; ++i) bits |= static_cast<std::uint32_t>(from[i * stride] != 0) << i;
  return bits;
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
