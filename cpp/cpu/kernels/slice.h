// The loops: from a slice to pieces of tensors, from a piece to vectors. Flat pieces are computed in place; strided
// ones are gathered into a small buffer, computed there, and scattered back: one kernel serves both with the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "jobs/slices.h"
#include "math/lowp.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Calls piece(tensor, first, count) for each tensor that has elements in the slice; first counts from the tensor's own
// start.
template <class Job, class Piece>
FUSESTEP_HD void for_each_piece(const Job& job, std::int64_t slice, const Piece& piece) {
  const std::int64_t slice_begin = slice * kSliceElements;
  const std::int64_t slice_end = std::min(slice_begin + kSliceElements, job.numel);
  // The last tensor that begins at or before the slice. Empty tensors are not in a job, so begins are distinct.
  std::int64_t low = 0;
  std::int64_t high = job.num_tensors;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (job.tensors[middle].begin <= slice_begin ? low : high) = middle;
  }
  for (std::int64_t t = low; t < job.num_tensors && job.tensors[t].begin < slice_end; ++t) {
    const std::int64_t first = std::max(slice_begin, job.tensors[t].begin);
    const std::int64_t last = std::min(slice_end, job.tensors[t + 1].begin);
    piece(job.tensors[t], first - job.tensors[t].begin, last - first);
  }
}

// Memory is prefetched this far ahead of the current vector: the hardware's prefetchers stop at the end of each 4 KiB
// page, and with up to five streams they are late at its start.
inline constexpr std::int64_t kPrefetchBytes = 512;

// The position in a piece of a tensor: elements from `first` on, in the order of the layout (nullptr: flat memory).
class ElementCursor {
 public:
  FUSESTEP_HD ElementCursor(const StridedLayout* layout, std::int64_t first) : layout_(layout), element_(first) {
    if (layout == nullptr) return;
    for (int d = layout->ndim - 1; d >= 0; --d) {
      index_[d] = first % layout->shape[d];
      first /= layout->shape[d];
    }
  }

  // How many elements follow at one distance from each other.
  FUSESTEP_HD std::int64_t run() const {
    if (layout_ == nullptr) return INT64_MAX;
    // NOLINTNEXTLINE(clang-analyzer-security.ArrayBound): a layout has at least one dimension
    return layout_->shape[layout_->ndim - 1] - index_[layout_->ndim - 1];
  }

  FUSESTEP_HD std::int64_t offset(int operand) const {
    if (layout_ == nullptr) return element_;
    std::int64_t offset = 0;
    for (int d = 0; d < layout_->ndim; ++d) offset += index_[d] * layout_->strides[operand][d];
    return offset;
  }

  // That distance.
  FUSESTEP_HD std::int64_t step(int operand) const {
    return layout_ == nullptr ? 1 : layout_->strides[operand][layout_->ndim - 1];
  }

  // `count` is at most run().
  FUSESTEP_HD void advance(std::int64_t count) {
    element_ += count;
    if (layout_ == nullptr) return;
    int d = layout_->ndim - 1;
    index_[d] += count;
    while (d > 0 && index_[d] == layout_->shape[d]) {
      index_[d] = 0;
      ++index_[--d];
    }
  }

 private:
  const StridedLayout* layout_;
  std::int64_t element_;
  std::int64_t index_[kMaxDims];
};

// Calls each(position, length) for the runs that the next `count` elements consist of, with the cursor at their start.
template <class Each>
FUSESTEP_HD void for_each_run(ElementCursor& cursor, std::int64_t count, const Each& each) {
  for (std::int64_t at = 0; at < count;) {
    const std::int64_t run = std::min(count - at, cursor.run());
    each(at, run);
    cursor.advance(run);
    at += run;
  }
}

inline constexpr std::int64_t kStridedBuffer = 256;

template <class T>
FUSESTEP_HD void gather(T* to, const T* from, std::int64_t step, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i * step];
}

template <class T>
FUSESTEP_HD void scatter(T* to, std::int64_t step, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i * step] = from[i];
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
