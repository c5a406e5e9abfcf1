#include "tensors/view_layout.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace fusestep {

namespace {

struct Dim {
  std::int64_t size;
  std::int64_t stride;
};

// The dimensions of more than one element, by increasing stride.
std::vector<Dim> moving_dims(const TensorView& view) {
  std::vector<Dim> dims;
  std::int64_t contiguous_stride = 1;
  for (std::int32_t i = view.ndim; i-- > 0;) {
    const std::int64_t size = view.shape[i];
    if (size > 1) dims.push_back({size, view.strides != nullptr ? view.strides[i] : contiguous_stride});
    contiguous_stride *= size;
  }
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dim& a, const Dim& b) { return std::abs(a.stride) < std::abs(b.stride); });
  return dims;
}

// Whether two different indices have the same address: steps, not all zero, with sum of step * stride = 0 and |step| <
// size. Depth first from the longest stride; a branch ends as soon as the remaining dimensions cannot bring the sum to
// zero.
class ReturnSearch {
 public:
  explicit ReturnSearch(const std::vector<Dim>& dims) : dims_(dims), reach_{0}, divisor_{0} {
    for (const Dim& dim : dims) {
      reach_.push_back(reach_.back() + (dim.size - 1) * dim.stride);
      divisor_.push_back(std::gcd(divisor_.back(), dim.stride));
    }
  }

  // True also when the search became too long to decide.
  bool found() { return search(dims_.size(), 0, false); }

 private:
  static constexpr int kMostVisits = 100'000;

  bool search(std::size_t below, std::int64_t offset, bool moved) {
    if (++visits_ > kMostVisits) return true;
    if (below == 0) return moved && offset == 0;
    if (divisor_[below] != 0 && offset % divisor_[below] != 0) return false;
    const Dim& dim = dims_[below - 1];
    const std::int64_t reach = reach_[below - 1];
    // |offset + step * stride| <= reach. Steps and their negatives are both solutions: the first non-zero step is
    // positive.
    const std::int64_t first = std::max(moved ? -(dim.size - 1) : 0, ceil_div(-reach - offset, dim.stride));
    const std::int64_t last = std::min(dim.size - 1, floor_div(reach - offset, dim.stride));
    for (std::int64_t step = first; step <= last; ++step) {
      if (search(below - 1, offset + step * dim.stride, moved || step != 0)) return true;
    }
    return false;
  }

  static std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
  static std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }

  const std::vector<Dim>& dims_;
  std::vector<std::int64_t> reach_;    // [n]: the largest offset within the first n dimensions
  std::vector<std::int64_t> divisor_;  // [n]: of the strides of the first n dimensions
  int visits_ = 0;
};

}  // namespace

std::string describe_shape(const TensorView& view) {
  std::string text = "(";
  for (std::int32_t i = 0; i < view.ndim; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(view.shape[i]);
  }
  return text + (view.ndim == 1 ? ",)" : ")");
}

std::int64_t stride_of(const TensorView& view, int dim) {
  if (view.strides != nullptr) return view.strides[dim];
  std::int64_t stride = 1;
  for (int d = view.ndim - 1; d > dim; --d) stride *= view.shape[d];
  return stride;
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool same_strides(const TensorView& a, const TensorView& b) {
  if (!same_shape(a, b)) return false;
  if (a.numel <= 1 || (a.strides == nullptr && b.strides == nullptr)) return true;
  std::int64_t contiguous_stride = 1;
  for (std::int32_t i = a.ndim; i-- > 0;) {
    const std::int64_t size = a.shape[i];
    const std::int64_t stride_a = a.strides != nullptr ? a.strides[i] : contiguous_stride;
    const std::int64_t stride_b = b.strides != nullptr ? b.strides[i] : contiguous_stride;
    if (size > 1 && stride_a != stride_b) return false;
    contiguous_stride *= size;
  }
  return true;
}

bool is_contiguous(const TensorView& view) {
  if (view.strides == nullptr || view.numel <= 1) return true;
  std::int64_t contiguous_stride = 1;
  for (std::int32_t i = view.ndim; i-- > 0;) {
    const std::int64_t size = view.shape[i];
    if (size > 1 && view.strides[i] != contiguous_stride) return false;
    contiguous_stride *= size;
  }
  return true;
}

bool is_dense(const TensorView& view) {
  if (is_contiguous(view)) return true;
  std::int64_t filled = 1;
  for (const Dim& dim : moving_dims(view)) {
    if (dim.stride != filled) return false;
    filled *= dim.size;
  }
  return true;
}

bool may_self_overlap(const TensorView& view) {
  if (is_contiguous(view)) return false;
  std::vector<Dim> dims = moving_dims(view);
  // The direction of a dimension does not matter: its elements are the same ones.
  for (Dim& dim : dims) dim.stride = std::abs(dim.stride);
  // Nested dimensions, as in every slice and transpose: each stride is longer than all that the smaller ones can reach.
  std::int64_t reach = 0;
  bool nested = true;
  for (const Dim& dim : dims) {
    if (dim.stride == 0) return true;
    nested = nested && dim.stride > reach;
    reach += (dim.size - 1) * dim.stride;
  }
  return !nested && ReturnSearch(dims).found();
}

Extent extent(const TensorView& view) {
  const auto data = reinterpret_cast<std::uintptr_t>(view.data);
  if (view.numel == 0) return {data, data};
  const std::int64_t itemsize = size_of(view.dtype);
  std::int64_t lowest = 0;
  std::int64_t highest = 0;
  if (view.strides == nullptr) {
    highest = view.numel - 1;
  } else {
    for (std::int32_t i = 0; i < view.ndim; ++i) {
      const std::int64_t reach = (view.shape[i] - 1) * view.strides[i];
      (reach < 0 ? lowest : highest) += reach;
    }
  }
  return {data + static_cast<std::uintptr_t>(lowest * itemsize),
          data + static_cast<std::uintptr_t>((highest + 1) * itemsize)};
}

}  // namespace fusestep
