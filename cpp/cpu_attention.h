// Attention on the CPU: sharing the blocks of a job out among threads.
#pragma once

#include "attention_job.h"
#include "backend.h"

namespace fusestep {

void cpu_attention_forward(const AttentionJob& job, const Stream& stream);

}  // namespace fusestep
