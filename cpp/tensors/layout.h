// In which order the operands of one elementwise kernel call are visited.
#pragma once

#include <deque>

#include "tensors/check.h"
#include "tensors/strided_layout.h"
#include "tensors/view.h"

namespace fusestep {

// That in which the first operand lies in memory, or C order.
enum class ElementOrder { memory, c_order };

// Keeps the layouts of a job at fixed addresses.
class LayoutStore {
 public:
  // `views` have the same shape, and views[k] is the kernel's operand operands[k]. nullptr: all are flat in that order,
  // so that element i of each is data[i].
  const StridedLayout* layout_of(const TensorView* const* views, const int* operands, int num_views,
                                 const Argument& argument, ElementOrder order = ElementOrder::memory);

 private:
  std::deque<StridedLayout> layouts_;
};

}  // namespace fusestep
