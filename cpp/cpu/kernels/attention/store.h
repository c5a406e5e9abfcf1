// The memory that attention's kernels work in, and how results are stored from there to the arrays.
#pragma once

#include <cstdint>

#include "cpu/kernels/attention/tiles.h"
#include "jobs/attention.h"
#include "simd/vec.h"
#include "threads/scratch.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Cuts the scratch memory into arrays.
class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<unsigned char*>(memory)) {}

  template <class T>
  T* take(std::int64_t count) {
    T* array = next_ == nullptr ? nullptr : reinterpret_cast<T*>(next_ + size_);
    size_ += static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(sizeof(T)), 64));
    return array;
  }
  std::size_t size() const { return size_; }

 private:
  unsigned char* next_;
  std::size_t size_ = 0;
};

// carve(arena) takes its arrays from the scratch memory of this thread. It is called twice: how much it takes has to be
// known first.
template <class Carve>
void carve_scratch(const Carve& carve) {
  Arena measure(nullptr);
  carve(measure);
  Arena arena(thread_scratch(measure.size()));
  carve(arena);
}

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

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
