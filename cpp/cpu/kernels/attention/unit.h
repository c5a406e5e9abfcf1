// What the units of the backward pass have in common: the tile that they work with, their sequence, their memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/attention/backward_tile.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class T>
class AttentionUnit {
 protected:
  explicit AttentionUnit(const AttentionBackwardJob& job)
      : job_(job), forward_(*job.forward), grads_(*job.grads), tile_(forward_, grads_.grad_out) {}

  // Which sequence the unit belongs to. first_unit: of each sequence, then the end.
  std::int64_t sequence_of(const std::int64_t* first_unit, std::int64_t unit) const {
    return std::upper_bound(first_unit, first_unit + forward_.num_sequences, unit) - first_unit - 1;
  }

  const AttentionBackwardJob& job_;
  const AttentionJob& forward_;
  const AttentionGrads& grads_;
  BackwardTile<T> tile_;
};

// Runs one unit in the arithmetic of the job's dtype.
template <template <class> class Unit>
void run_unit(const AttentionBackwardJob& job, std::int64_t unit) {
  if (job.forward->dtype == DType::float64) {
    Unit<double>(job).run(unit);
  } else {
    Unit<float>(job).run(unit);
  }
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
