// What the units of the backward pass have in common: the tile that they work with, their sequence, their memory.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class Tile>
class AttentionUnit {
 protected:
  explicit AttentionUnit(const AttentionBackwardJob& job)
      : job_(job), forward_(*job.forward), grads_(*job.grads), tile_(job) {}

  const AttentionBackwardJob& job_;
  const AttentionJob& forward_;
  const AttentionGrads& grads_;
  Tile tile_;
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
