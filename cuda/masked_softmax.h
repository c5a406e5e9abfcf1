#pragma once

#include "backend/backend.h"

namespace fusestep::cuda {

void run_masked_softmax_forward(const SoftmaxJob&, const Stream&);
void run_masked_softmax_backward(const SoftmaxJob&, const SoftmaxGrads&, const Stream&);

}  // namespace fusestep::cuda
