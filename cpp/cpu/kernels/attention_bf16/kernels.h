// What the files of one instruction set with products of bfloat16 give each other and dispatch.
#pragma once

#include "cpu/kernel_table.h"

namespace fusestep::FUSESTEP_ISA {

void fill_bf16_forward(Bf16Attention& kernels);
void fill_bf16_backward(Bf16Attention& kernels);

// Attention of bfloat16: the rest of the table is another instruction set's.
Bf16Attention make_bf16_attention();

}  // namespace fusestep::FUSESTEP_ISA
