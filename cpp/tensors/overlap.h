// Refuses memory that is written and that a second array reaches: in-place kernels visit elements in any order and on
// any thread, so the result would depend on which access comes last.
#pragma once

#include <cstdint>
#include <vector>

#include "tensors/check.h"
#include "tensors/view.h"

namespace fusestep {

class OverlapCheck {
 public:
  // Makes room for so many more.
  void reserve(std::size_t regions) {
    regions_.reserve(regions_.size() + regions);
    arguments_.reserve(arguments_.size() + regions);
  }

  // Memory that an operation reads, or reads and writes.
  void reads(const TensorView& view, const Argument& argument) { note(view, argument, false); }
  void writes(const TensorView& view, const Argument& argument) { note(view, argument, true); }

  // Refuses if anything written overlaps anything else. The bytes between a strided view's first and last element count
  // as its own: interleaved views are refused too.
  void check();

 private:
  // Small, because each step sorts thousands of them; the names are kept apart, in arguments_.
  struct Region {
    std::uintptr_t begin;
    std::uintptr_t end;
    std::uint32_t argument;
    bool written;
  };

  void note(const TensorView& view, const Argument& argument, bool written);
  void sort();

  std::vector<Region> regions_;
  std::vector<Argument> arguments_;
};

}  // namespace fusestep
