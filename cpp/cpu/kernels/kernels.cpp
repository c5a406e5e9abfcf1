// The table of one instruction set.
#include "cpu/kernels/kernels.h"

#define FUSESTEP_TEXT_OF(x) #x
#define FUSESTEP_TEXT(x) FUSESTEP_TEXT_OF(x)

namespace fusestep::FUSESTEP_ISA {

CpuKernels make_kernels() {
  CpuKernels kernels{};
  kernels.name = FUSESTEP_TEXT(FUSESTEP_ISA);
  fill_updates(kernels);
  fill_grads(kernels);
  fill_cross_entropy(kernels);
  fill_dropout(kernels);
  fill_masked_softmax(kernels);
  fill_peak(kernels);
  fill_stream(kernels);
  fill_attention_forward(kernels);
  fill_attention_backward(kernels);
  fill_attention_grad_mask(kernels);
  return kernels;
}

}  // namespace fusestep::FUSESTEP_ISA
