// Attention on the CPU: sharing the blocks of a job out among threads.
#pragma once

#include "backend/backend.h"
#include "jobs/attention.h"

namespace fusestep {

void cpu_attention_forward(const AttentionJob& job, const Stream& stream);
void cpu_attention_backward(const AttentionJob& job, const AttentionGrads& grads, const Stream& stream);

// Of the two products of the forward pass, if no mask left anything out.
double forward_flops(const AttentionJob& job);

// Below this a second thread is not awake before the work is done.
inline constexpr double kAloneFlops = 1e6;

}  // namespace fusestep
