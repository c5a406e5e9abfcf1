// The kernels of one instruction set with products of bfloat16.
#include "cpu/kernels/attention_bf16/kernels.h"

namespace fusestep::FUSESTEP_ISA {

Bf16Attention make_bf16_attention() {
  Bf16Attention kernels{};
  fill_bf16_forward(kernels);
  fill_bf16_backward(kernels);
  return kernels;
}

}  // namespace fusestep::FUSESTEP_ISA
