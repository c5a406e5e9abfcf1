// How the operands of one elementwise kernel call are walked together.
#pragma once

#include <deque>

#include "backend.h"
#include "check.h"

namespace fusestep {

// Keeps the layouts of a job at addresses that stay.
class LayoutStore {
 public:
  // `views` have the same shape; the first is the one whose memory order is followed, and views[k] is the kernel's
  // operand operands[k]. nullptr: all are flat and lie alike, so that element i of each is data[i].
  const StridedLayout* layout_of(const TensorView* const* views, const int* operands, int num_views,
                                 const Argument& argument);

 private:
  std::deque<StridedLayout> layouts_;
};

}  // namespace fusestep
