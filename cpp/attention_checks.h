// What the arrays of attention are checked for one by one.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "check.h"
#include "view.h"

namespace fusestep {

// In elements, also of a contiguous view.
std::int64_t stride_of(const TensorView& view, int dim);

// As Python writes it.
std::string text_of_shape(std::initializer_list<std::int64_t> sizes);

void check_shape(const TensorView& view, std::initializer_list<std::int64_t> sizes, const Argument& argument);
void check_dtype(const TensorView& view, DType dtype, const Argument& argument);
void check_device(const TensorView& view, Device device, const Argument& argument);

}  // namespace fusestep
