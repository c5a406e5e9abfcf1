// Attention without tensor cores, for any dtype and any strides: what float32 and float64 run on, and the gradient of a
// mask. Its arithmetic is float, or double for float64.
#pragma once

#include "cuda/attention/arguments.h"
#include "cuda/memory.h"

namespace fusestep::cuda {

void run_plain_forward(Session& session, const AttentionArguments& arguments);

// grad_query, grad_key and grad_value, those that are wanted.
void run_plain_backward(Session& session, const AttentionArguments& arguments);

// grad_mask, deterministic: summed up in a fixed order over what the mask was broadcast over.
void run_grad_mask(Session& session, const AttentionArguments& arguments);

}  // namespace fusestep::cuda
