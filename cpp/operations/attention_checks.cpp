#include "operations/attention_checks.h"

#include <algorithm>
#include <string>

#include "tensors/view_layout.h"

namespace fusestep {

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

void check_device(const TensorView& view, Device device, const Argument& argument, const char* whose) {
  if (view.device == device) return;
  refuse_value(argument, std::string("the device of ") + whose, "another one", "Move all arrays to one device.");
}

HeadTensor mask_tensor(const TensorView& mask, const TensorView& like, const std::int64_t (&sizes)[4],
                       const Argument& argument) {
  check_device(mask, like.device, argument, "the scores");
  if (mask.dtype != DType::boolean && mask.dtype != DType::float32 && mask.dtype != like.dtype) {
    std::string expected = "bool, float32";
    if (like.dtype != DType::float32) expected += std::string(" or ") + name_of(like.dtype);
    refuse_type(argument, expected, name_of(mask.dtype), "Convert it first.");
  }
  std::int64_t strides[4] = {};
  bool broadcasts = mask.ndim <= 4;
  for (int d = 0; d < mask.ndim && broadcasts; ++d) {
    const int full = 4 - mask.ndim + d;
    broadcasts = mask.shape[d] == 1 || mask.shape[d] == sizes[full];
    strides[full] = mask.shape[d] == 1 ? 0 : stride_of(mask, d);
  }
  if (!broadcasts) {
    refuse_value(argument, "a shape that broadcasts to " + text_of_shape({sizes[0], sizes[1], sizes[2], sizes[3]}),
                 describe_shape(mask));
  }
  return {mask.data, strides[0], strides[1], strides[2], strides[3]};
}

IntegerArray integers(const TensorView& view, Device device, const Argument& argument) {
  if (view.device.type != kDeviceCpu && view.device != device) {
    refuse_value(argument,
                 device.type == kDeviceCpu ? "an array in CPU memory" : "an array in CPU memory or on this device",
                 "one on another device", "Move it there.");
  }
  return {view.data, stride_of(view, 0), view.dtype};
}

}  // namespace fusestep
