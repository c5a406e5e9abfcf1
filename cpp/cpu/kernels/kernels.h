// What the files of one instruction set give each other. Everything else in them has internal linkage.
#pragma once

#include "cpu/kernel_table.h"

namespace fusestep::FUSESTEP_ISA {

void fill_updates(CpuKernels& kernels);
void fill_grads(CpuKernels& kernels);
void fill_cross_entropy(CpuKernels& kernels);
void fill_dropout(CpuKernels& kernels);
void fill_masked_softmax(CpuKernels& kernels);
void fill_peak(CpuKernels& kernels);
void fill_stream(CpuKernels& kernels);
void fill_attention_forward(CpuKernels& kernels);
void fill_attention_backward(CpuKernels& kernels);
void fill_attention_grad_mask(CpuKernels& kernels);

CpuKernels make_kernels();

}  // namespace fusestep::FUSESTEP_ISA
