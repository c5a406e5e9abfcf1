#include "tensors/overlap.h"

#include <algorithm>
#include <string>

#include "tensors/view_layout.h"

namespace fusestep {

void OverlapCheck::note(const TensorView& view, const Argument& argument, bool written) {
  if (view.numel == 0) return;
  const Extent bytes = extent(view);
  regions_.push_back({bytes.begin, bytes.end, static_cast<std::uint32_t>(arguments_.size()), written});
  arguments_.push_back(argument);
}

void OverlapCheck::sort() {
  // A step mostly gets the arrays of the step before, at the same addresses: the order that sorted them then sorts them
  // now. The guess saves time only: any order gives the same answer.
  thread_local std::vector<std::uint32_t> order;
  const std::size_t count = regions_.size();
  const auto by_begin = [](const Region& a, const Region& b) { return a.begin < b.begin; };
  if (order.size() == count) {
    std::vector<Region> guessed;
    guessed.reserve(count);
    for (const std::uint32_t i : order) guessed.push_back(regions_[i]);
    regions_.swap(guessed);
    if (std::is_sorted(regions_.begin(), regions_.end(), by_begin)) return;
  }
  std::sort(regions_.begin(), regions_.end(), by_begin);
  order.clear();
  for (const Region& region : regions_) order.push_back(region.argument);
}

void OverlapCheck::check() {
  sort();
  // In increasing order, a region overlaps an earlier one exactly if it begins before the largest end so far.
  const Region* furthest = nullptr;
  const Region* furthest_written = nullptr;
  for (const Region& region : regions_) {
    const Region* before = region.written ? furthest : furthest_written;
    if (before != nullptr && region.begin < before->end) {
      const Region& blamed = region.written ? region : *before;
      const Region& other = region.written ? *before : region;
      refuse_value(arguments_[blamed.argument], "memory of its own",
                   "memory shared with " + arguments_[other.argument].path(),
                   "It is changed in place: pass each tensor once, and no two views of the same memory.");
    }
    if (furthest == nullptr || region.end > furthest->end) furthest = &region;
    if (region.written && (furthest_written == nullptr || region.end > furthest_written->end)) {
      furthest_written = &region;
    }
  }
}

}  // namespace fusestep
