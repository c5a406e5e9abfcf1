// Checks of single arrays of attention.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "jobs/attention.h"
#include "tensors/check.h"
#include "tensors/view.h"

namespace fusestep {

// As Python writes it.
std::string text_of_shape(std::initializer_list<std::int64_t> sizes);

void check_shape(const TensorView& view, std::initializer_list<std::int64_t> sizes, const Argument& argument);
void check_dtype(const TensorView& view, DType dtype, const Argument& argument);
// `whose`: whose device it is.
void check_device(const TensorView& view, Device device, const Argument& argument, const char* whose = "query");

// A mask of scores of these sizes (batch, heads, queries, keys), with a stride of 0 where it is broadcast. Refuses
// another device than `like` is on, another dtype than bool, float32 and that of `like`, and a shape that does not
// broadcast.
HeadTensor mask_tensor(const TensorView& mask, const TensorView& like, const std::int64_t (&sizes)[4],
                       const Argument& argument);

// A one-dimensional array of int32 or int64: lengths or offsets. They lie in CPU memory, where the host reads them
// before the kernels run, or on `device`, where it need not wait for them. Refuses any other place.
IntegerArray integers(const TensorView& view, Device device, const Argument& argument);

}  // namespace fusestep
