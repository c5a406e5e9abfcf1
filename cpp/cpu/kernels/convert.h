// A few elements of a tensor of any float dtype, to and from the type that arithmetic is done in.
#pragma once

#include <cstdint>

#include "cpu/kernels/slice.h"
#include "math/lowp.h"
#include "math/rounding.h"
#include "simd/vec.h"
#include "tensors/view.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class S>
FUSESTEP_HD void widen(float* to, const S* from, std::int64_t step, std::int64_t count) {
  std::int64_t i = 0;
  if (step == 1) {
    constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(S));
    for (; i + Vec<float>::kWidth <= count; i += Vec<float>::kWidth) {
      __builtin_prefetch(from + i + kAhead);
      Vec<float>::load(from + i).store(to + i);
    }
  }
  for (; i < count; ++i) to[i] = to_float(from[i * step]);
}

// Each element rounded on its own by round(i, value).
template <class S, class Round>
FUSESTEP_HD void narrow_each(S* to, std::int64_t step, std::int64_t count, const float* from, const Round& round) {
  if (step == 1) {  // a loop of its own, which the compiler turns into vectors
    for (std::int64_t i = 0; i < count; ++i) to[i] = round(i, from[i]);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i * step] = round(i, from[i]);
  }
}

// To the nearest.
template <class S>
FUSESTEP_HD void narrow(S* to, std::int64_t step, const float* from, std::int64_t count) {
  std::int64_t i = 0;
  if (step == 1) {
    for (; i + Vec<float>::kWidth <= count; i += Vec<float>::kWidth) Vec<float>::load(from + i).store(to + i);
  }
  for (; i < count; ++i) to[i * step] = narrowed(from[i], S{});
}

FUSESTEP_HD void narrow_stochastic(BFloat16* to, std::int64_t step, const float* from, std::int64_t count,
                                   const std::uint16_t* numbers) {
  narrow_each(to, step, count, from, [=](std::int64_t i, float x) { return to_bfloat16_stochastic(x, numbers[i]); });
}
FUSESTEP_HD void narrow_stochastic(Float16* to, std::int64_t step, const float* from, std::int64_t count,
                                   const std::uint16_t* numbers) {
  narrow_each(to, step, count, from, [=](std::int64_t i, float x) { return to_float16_stochastic(x, numbers[i]); });
}

// Calls visit(S*) with the address of an element of a 16-bit tensor.
template <class Visit>
FUSESTEP_HD void with_half(void* data, DType dtype, std::int64_t element, const Visit& visit) {
  if (dtype == DType::bfloat16) {
    visit(static_cast<BFloat16*>(data) + element);
  } else {
    visit(static_cast<Float16*>(data) + element);
  }
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
