// Masked softmax attention with dropout on a device.
#pragma once

#include "backend/backend.h"

namespace fusestep::cuda {

void run_attention_forward(const AttentionJob& job, const Stream& stream);
void run_attention_backward(const AttentionJob& job, const AttentionGrads& grads, const Stream& stream);

}  // namespace fusestep::cuda
