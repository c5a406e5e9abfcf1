// The backward pass of attention in float and double.
#include "cpu/kernels/attention/backward_tile.h"
#include "cpu/kernels/attention/backward_unit.h"
#include "cpu/kernels/kernels.h"

namespace fusestep::FUSESTEP_ISA {

void fill_attention_backward(CpuKernels& kernels) {
  kernels.attention_key_block = kKeyBlock;
  kernels.attention_backward = run_unit<BackwardUnit>;
}

}  // namespace fusestep::FUSESTEP_ISA
