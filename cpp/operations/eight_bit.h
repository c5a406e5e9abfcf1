// Moments to 8 bits and back (math/eight_bit.h), beside the optimizers, which do it themselves: for state dicts of
// other libraries. On the CPU alone, element by element.
#pragma once

#include "tensors/view.h"

namespace fusestep {

// `values`: float32, C-contiguous. `codes`: uint8, as many; `absmax`: float32, one for each 256 elements; both
// C-contiguous. square: codes without a sign and without a zero.
void quantize_moments(const char* operation, const TensorView& values, const TensorView& codes,
                      const TensorView& absmax, bool square);
void dequantize_moments(const char* operation, const TensorView& values, const TensorView& codes,
                        const TensorView& absmax, bool square);

}  // namespace fusestep
