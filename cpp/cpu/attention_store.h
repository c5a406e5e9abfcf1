// The memory that attention's kernels work in, and the way from there to the arrays.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention_job.h"
#include "cpu/attention_tiles.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Cuts the scratch memory into arrays.
class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<unsigned char*>(memory)) {}

  template <class T>
  T* take(std::int64_t count) {
    T* array = reinterpret_cast<T*>(next_ + size_);
    size_ += static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(sizeof(T)), 64));
    return array;
  }
  std::size_t size() const { return size_; }

 private:
  unsigned char* next_;
  std::size_t size_ = 0;
};

FUSESTEP_HD void narrow(double x, double& to) { to = x; }
FUSESTEP_HD void narrow(double x, float& to) { to = static_cast<float>(x); }
FUSESTEP_HD void narrow(double x, Float16& to) { to = to_float16(static_cast<float>(x)); }
FUSESTEP_HD void narrow(double x, BFloat16& to) { to = to_bfloat16(static_cast<float>(x)); }

// A row of an array, of any dtype and stride: factor * from.
template <class T>
void store_row(const HeadTensor& tensor, DType dtype, std::int64_t offset, const T* from, T factor,
               std::int64_t count) {
  using V = Vec<T>;
  with_elements(tensor.data, dtype, offset, [&]<class S>(const S* at) {
    S* to = const_cast<S*>(at);
    std::int64_t i = 0;
    if constexpr (sizeof(T) == sizeof(float) ? sizeof(S) <= sizeof(T) : sizeof(S) == sizeof(T)) {
      if (tensor.column == 1) {
        for (; i + V::kWidth <= count; i += V::kWidth) (V(factor) * V::load(from + i)).store(to + i);
      }
    }
    for (; i < count; ++i) narrow(factor * from[i], to[i * tensor.column]);
  });
}

// Four rows of four, turned over their diagonal.
template <class T>
FUSESTEP_HD void transpose_four(const T* from, std::int64_t from_stride, T factor, T* to, std::int64_t to_stride) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t> Index;
  typedef Index Order __attribute__((vector_size(4 * sizeof(T))));
  Four row[4];
  for (int i = 0; i < 4; ++i) {
    memcpy(&row[i], from + i * from_stride, sizeof(Four));
    row[i] *= factor;
  }
  const Four low01 = __builtin_shuffle(row[0], row[1], Order{0, 4, 1, 5});
  const Four high01 = __builtin_shuffle(row[0], row[1], Order{2, 6, 3, 7});
  const Four low23 = __builtin_shuffle(row[2], row[3], Order{0, 4, 1, 5});
  const Four high23 = __builtin_shuffle(row[2], row[3], Order{2, 6, 3, 7});
  const Four column[4] = {
      __builtin_shuffle(low01, low23, Order{0, 1, 4, 5}), __builtin_shuffle(low01, low23, Order{2, 3, 6, 7}),
      __builtin_shuffle(high01, high23, Order{0, 1, 4, 5}), __builtin_shuffle(high01, high23, Order{2, 3, 6, 7})};
  for (int i = 0; i < 4; ++i) memcpy(to + i * to_stride, &column[i], sizeof(Four));
}

// to[column][row] = factor * rows[row][column]. Each row of `to` has to_columns, the rest of them zero.
template <class T>
__attribute__((noinline)) void transpose_rows(const Rows<T>& rows, std::int64_t count, std::int64_t columns, T factor,
                                              T* to, std::int64_t to_stride, std::int64_t to_columns) {
  std::int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const T* from = rows.data + r * rows.stride;
    std::int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      transpose_four(from + c, rows.stride, factor, to + c * to_stride + r, to_stride);
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) to[c * to_stride + r + i] = factor * from[i * rows.stride + c];
    }
  }
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t i = r; i < count; ++i) to[c * to_stride + i] = factor * rows.data[i * rows.stride + c];
    for (std::int64_t i = count; i < to_columns; ++i) to[c * to_stride + i] = 0;
  }
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
