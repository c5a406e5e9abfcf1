// Bringing pieces of the arrays into the form that the products take: contiguous rows of float or double, queries
// transposed, masks as bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention_job.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// The type that arithmetic on a storage type is done in is the caller's; one element widens to it.
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
      return;  // plans hold floats, and boolean masks
  }
}

// A vector of elements one beside the other. A float kernel meets doubles only as ALiBi slopes, never here.
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

// A piece of an array as rows that the products can walk: its own memory where that will do, else a copy in `buffer`.
template <class T>
struct Rows {
  const T* data;
  std::int64_t stride;
};

template <class T>
inline constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::float64 : DType::float32;

// The copy's rows are buffer_stride apart and zero beyond `columns`. `whole`: reading whole vectors up to buffer_stride
// must not pass the end of a row.
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

// to[column][panel] = factor * rows, transposed; lanes beyond `rows` are zero.
template <class T>
void copy_transposed(T* to, std::int64_t panel, const HeadTensor& tensor, DType dtype, std::int64_t offset,
                     std::int64_t rows, std::int64_t columns, T factor) {
  with_elements(tensor.data, dtype, offset, [&](const auto* from) {
    for (std::int64_t r = 0; r < panel; ++r) {
      for (std::int64_t c = 0; c < columns; ++c) {
        to[c * panel + r] = r < rows ? widen<T>(from[r * tensor.row + c * tensor.column]) * factor : T(0);
      }
    }
  });
}

// Which of 32 neighbouring keys, from `first` on, lie in the range.
FUSESTEP_HD std::uint32_t bits_in(PositionRange range, std::int64_t first) {
  const std::int64_t begin = std::clamp<std::int64_t>(range.begin - first, 0, 32);
  const std::int64_t end = std::clamp<std::int64_t>(range.end - first, begin, 32);
  const std::uint64_t bits = (std::uint64_t{1} << end) - (std::uint64_t{1} << begin);
  return static_cast<std::uint32_t>(bits);
}

// Which of `count` (at most 32) booleans are true.
FUSESTEP_HD std::uint32_t bits_of_booleans(const std::uint8_t* from, std::int64_t stride, std::int64_t count) {
  std::uint32_t bits = 0;
  for (std::int64_t i = 0; i < count; ++i) bits |= static_cast<std::uint32_t>(from[i * stride] != 0) << i;
  return bits;
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
