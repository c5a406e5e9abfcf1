#include "attention_checks.h"

#include <algorithm>
#include <string>

#include "view_layout.h"

namespace fusestep {

std::int64_t stride_of(const TensorView& view, int dim) {
  if (view.strides != nullptr) return view.strides[dim];
  std::int64_t stride = 1;
  for (int d = view.ndim - 1; d > dim; --d) stride *= view.shape[d];
  return stride;
}

std::string text_of_shape(std::initializer_list<std::int64_t> sizes) {
  TensorView view;
  view.shape = sizes.begin();
  view.ndim = static_cast<std::int32_t>(sizes.size());
  return describe_shape(view);
}

void check_shape(const TensorView& view, std::initializer_list<std::int64_t> sizes, const Argument& argument) {
  if (view.ndim == static_cast<std::int32_t>(sizes.size()) && std::equal(sizes.begin(), sizes.end(), view.shape)) {
    return;
  }
  refuse_value(argument, "shape " + text_of_shape(sizes), describe_shape(view));
}

void check_dtype(const TensorView& view, DType dtype, const Argument& argument) {
  if (view.dtype == dtype) return;
  refuse_type(argument, name_of(dtype), name_of(view.dtype), "Convert it first.");
}

void check_device(const TensorView& view, Device device, const Argument& argument) {
  if (view.device == device) return;
  refuse_value(argument, "the device of query", "another one", "Move all arrays to one device.");
}

}  // namespace fusestep
