// Plain dropout of one tensor, with a residual or without.
#pragma once

#include <cstdint>
#include <type_traits>

#include "math/dropout.h"
#include "math/lowp.h"
#include "tensors/strided_layout.h"
#include "tensors/view.h"

namespace fusestep {

// What x + residual is stored as, by torch's promotion: x and residual may have different dtypes. Unequal ones give a
// dtype that holds both: float64 beside float64, else float32.
template <class X, class R>
using Promoted =
    std::conditional_t<std::is_same_v<X, R>, X, decltype(typename Wide<X>::type{} + typename Wide<R>::type{})>;

constexpr DType promoted(DType x, DType residual) {
  if (x == residual) return x;
  return x == DType::float64 || residual == DType::float64 ? DType::float64 : DType::float32;
}

// The type of elements of a float dtype, as an argument of visit. For hosts alone; always_inline for the reason that
// math/hd.h gives.
template <class Visit>
inline __attribute__((always_inline)) void with_element_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::float32:
      return visit(float{});
    case DType::float64:
      return visit(double{});
    case DType::float16:
      return visit(Float16{});
    case DType::bfloat16:
      return visit(BFloat16{});
    default:
      return;  // is refused
  }
}

// Elements are counted in C order, whatever the layout.
struct DropoutJob {
  const void* input;
  const void* residual;         // nullptr: there is none to add
  void* out;                    // may be input or residual
  const StridedLayout* layout;  // of input, out and residual, in C order; nullptr: all are C-contiguous
  std::int64_t numel;
  DType dtype;           // of input
  DType residual_dtype;  // that of input where there is none; out has the promoted one
  DropoutRule rule;
};

}  // namespace fusestep
