// The masked softmax on the CPU: sharing the rows of a job out among threads.
#pragma once

#include "backend/backend.h"

namespace fusestep {

void cpu_masked_softmax_forward(const SoftmaxJob& job, const Stream& stream);
void cpu_masked_softmax_backward(const SoftmaxJob& job, const SoftmaxGrads& grads, const Stream& stream);

}  // namespace fusestep
