// Refusing memory that is written and reached a second time: in-place kernels run in any order and on any thread, so
// two ways to the same element would give whatever comes last.
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
  // Small, because thousands are sorted at each step; whose it is stands apart, in arguments_.
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
