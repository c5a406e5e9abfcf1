// How the operands of one elementwise kernel call are walked together.
#pragma once

#include <deque>

#include "backend/backend.h"
#include "tensors/check.h"

namespace fusestep {

// The order in which elements are walked: that in which the first operand lies in memory, or C order.
enum class Walk { memory, c_order };

// Keeps the layouts of a job at addresses that stay.
class LayoutStore {
 public:
  // `views` have the same shape, and views[k] is the kernel's operand operands[k]. nullptr: all lie alike and flat in
  // that order, so that element i of each is data[i].
  const StridedLayout* layout_of(const TensorView* const* views, const int* operands, int num_views,
                                 const Argument& argument, Walk walk = Walk::memory);

 private:
  std::deque<StridedLayout> layouts_;
};

}  // namespace fusestep
