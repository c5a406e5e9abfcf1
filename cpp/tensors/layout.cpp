#include "tensors/layout.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "tensors/view_layout.h"

namespace fusestep {

namespace {

bool all_flat(const TensorView* const* views, int num_views, ElementOrder order) {
  if (!(order == ElementOrder::memory ? is_dense(*views[0]) : is_contiguous(*views[0]))) return false;
  return std::all_of(views + 1, views + num_views, [&](const TensorView* v) { return same_strides(*views[0], *v); });
}

}  // namespace

const StridedLayout* LayoutStore::layout_of(const TensorView* const* views, const int* operands, int num_views,
                                            const Argument& argument, ElementOrder order) {
  if (all_flat(views, num_views, order)) return nullptr;

  const TensorView& first = *views[0];
  std::vector<int> dims;  // those that matter, the outermost first
  for (int d = 0; d < first.ndim; ++d) {
    if (first.shape[d] != 1) dims.push_back(d);
  }
  if (order == ElementOrder::memory) {
    std::stable_sort(dims.begin(), dims.end(),
                     [&](int a, int b) { return std::abs(stride_of(first, a)) > std::abs(stride_of(first, b)); });
  }

  StridedLayout layout{};
  for (const int d : dims) {
    const auto merges = [&](int k) {
      return layout.strides[operands[k]][layout.ndim - 1] == stride_of(*views[k], d) * first.shape[d];
    };
    bool merge = layout.ndim > 0;
    for (int k = 0; merge && k < num_views; ++k) merge = merges(k);
    if (merge) {
      layout.shape[layout.ndim - 1] *= first.shape[d];
    } else if (layout.ndim < kMaxDims) {
      layout.shape[layout.ndim++] = first.shape[d];
    } else {
      refuse_value(argument, "at most " + std::to_string(kMaxDims) + " dimensions that cannot be merged",
                   "a strided view of " + std::to_string(first.ndim) + " dimensions", "Make it contiguous.");
    }
    for (int k = 0; k < num_views; ++k) layout.strides[operands[k]][layout.ndim - 1] = stride_of(*views[k], d);
  }
  if (layout.ndim == 0) return nullptr;  // one element
  layouts_.push_back(layout);
  return &layouts_.back();
}

}  // namespace fusestep
