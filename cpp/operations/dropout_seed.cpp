#include "operations/dropout_seed.h"

#include <string>

#include "tensors/view_layout.h"

namespace fusestep {

DropoutSeed checked_seed(const SeedOption& seed, Device device, const Argument& argument) {
  if (!seed.tensor) return {seed.number};
  const TensorView& tensor = *seed.tensor;
  if (tensor.dtype != DType::int64 || tensor.ndim != 0) {
    refuse_type(argument, "an int, or a 0-dim int64 tensor",
                std::string(name_of(tensor.dtype)) + " of shape " + describe_shape(tensor));
  }
  if (tensor.device != device) {
    refuse_value(argument, "a tensor on the device of what is dropped", "one on another device",
                 "Move it there, or give an int.");
  }
  return {0, static_cast<const std::uint64_t*>(tensor.data)};
}

}  // namespace fusestep
