// What the backward pass needs of each query besides its scores.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/kernels/attention/score_tile.h"
#include "math/attention/score.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// inf for rows that attend to nothing: every weight is then 2^-inf = 0.
template <class T>
FUSESTEP_HD T lse_in_base2(T lse) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  return lse == -kInfinity ? kInfinity : static_cast<T>(static_cast<double>(lse) * kLog2E);
}

// deltas[row] = grad_out[row] . out[row], by which the softmax shifts the gradients. Columns are whole vectors. lanes:
// memory for a vector of each row.
template <class T, class S>
void store_deltas(const S* grad_out, std::int64_t grad_row, const S* out, std::int64_t out_row, std::int64_t rows,
                  std::int64_t columns, T* lanes, T* deltas) {
  using V = Vec<T>;
  for (std::int64_t row = 0; row < rows; ++row) {
    V sum(T(0));
    for (std::int64_t c = 0; c < columns; c += V::kWidth) {
      sum = fma(V::load(grad_out + row * grad_row + c), V::load(out + row * out_row + c), sum);
    }
    sum.store(lanes + row * V::kWidth);
  }
  combine_lanes(lanes, rows, deltas, [](V a, V b) { return a + b; });
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
