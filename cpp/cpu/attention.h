// Attention on the CPU: sharing the blocks of a job out among threads.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "backend/backend.h"
#include "cpu/kernel_table.h"
#include "jobs/attention.h"
#include "threads/threads.h"

namespace fusestep {

void cpu_attention_forward(const AttentionJob& job, const Stream& stream);
void cpu_attention_backward(const AttentionJob& job, const AttentionGrads& grads, const Stream& stream);

// Of the two products of the forward pass, if no mask left anything out.
double forward_flops(const AttentionJob& job);

// Which kernels a job takes: those on products of bfloat16 where it is bfloat16 and the instruction set has them, else
// those in the arithmetic of float or double. The gradient of a mask always takes the latter: its pass makes the scores
// and nothing of what was rounded for a second product.
inline bool takes_bf16_products(const AttentionJob& job) {
  return job.dtype == DType::bfloat16 && cpu_kernels().bf16_attention.forward != nullptr;
}

// Where the units of each sequence begin, and the end.
template <class Count>
std::vector<std::int64_t> first_units(const AttentionJob& job, const Count& count) {
  std::vector<std::int64_t> first(static_cast<std::size_t>(job.num_sequences) + 1);
  for (std::int64_t s = 0; s < job.num_sequences; ++s) {
    const auto i = static_cast<std::size_t>(s);
    first[i + 1] = first[i] + count(job.sequences[s]);
  }
  return first;
}

// Below this a second thread is not awake before the work is done.
inline constexpr double kAloneFlops = 1e6;

// Memory for packed arrays. Tiles are read fastest where their rows are cache lines.
struct FreePacked {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
inline std::unique_ptr<void, FreePacked> packed_memory(std::int64_t bytes) {
  return std::unique_ptr<void, FreePacked>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64}));
}

// Calls run(unit) for each unit: in this thread alone where the work is small.
template <class Run>
void run_units(double flops, std::int64_t units, const Run& run) {
  if (flops < kAloneFlops) {
    for (std::int64_t unit = 0; unit < units; ++unit) run(unit);
  } else {
    parallel_for(units, run);
  }
}

}  // namespace fusestep
