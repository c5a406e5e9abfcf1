// How a view is laid out in memory: what is asked before a kernel may run on it.
#pragma once

#include <cstdint>
#include <string>

#include "tensors/view.h"

namespace fusestep {

// "(4, 5)", "(3,)", "()": as Python writes it.
std::string describe_shape(const TensorView& view);

// In elements, also of a contiguous view.
std::int64_t stride_of(const TensorView& view, int dim);

bool same_shape(const TensorView& a, const TensorView& b);

// Same shape, and the same strides wherever they matter (in dimensions of more than one element). Elementwise work on
// such views visits them in the same order.
bool same_strides(const TensorView& a, const TensorView& b);

// In C order without gaps.
bool is_contiguous(const TensorView& view);

// C-contiguous without gaps in some order of its dimensions, such as a transposed matrix. Its elements fill
// [data, data + numel), so dense views with the same strides may be treated as flat arrays.
bool is_dense(const TensorView& view);

// Whether two different indices can reach the same element (an expanded tensor, a sliding window). Exact, except that
// a layout that a bounded search cannot decide counts as overlapping.
bool may_self_overlap(const TensorView& view);

// The bytes in [begin, end) that a view reaches. An empty view reaches none: begin == end.
struct Extent {
  std::uintptr_t begin;
  std::uintptr_t end;
};

Extent extent(const TensorView& view);

}  // namespace fusestep
