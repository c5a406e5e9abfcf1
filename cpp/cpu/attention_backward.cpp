// The backward pass on the CPU: its units, and what their threads share.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/attention.h"
#include "cpu/kernel_table.h"
#include "threads/threads.h"

namespace fusestep {

namespace {

constexpr std::int64_t kMostLanes = 16;  // rows in scratch are padded to the vectors of any instruction set

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

void run_units(void (*run)(const AttentionBackwardJob&, std::int64_t), const AttentionBackwardJob& job,
               std::int64_t units) {
  // Five products for the forward pass's two.
  const double flops = 2.5 * forward_flops(*job.forward);
  if (flops < kAloneFlops) {
    for (std::int64_t unit = 0; unit < units; ++unit) run(job, unit);
    return;
  }
  parallel_for(units, [&](std::int64_t unit) { run(job, unit); });
}

void run_backward(AttentionBackwardJob& job) {
  const AttentionJob& forward = *job.forward;
  const CpuKernels& kernels = cpu_kernels();
  const std::vector<std::int64_t> first = first_units(forward, [&](const AttentionSequence& sequence) {
    return forward.kv_heads * attention_blocks(sequence.keys, kernels.attention_key_block);
  });
  job.first_unit = first.data();
  std::vector<std::uint32_t> turns(static_cast<std::size_t>(forward.query_blocks));
  job.turns = turns.data();

  const std::int64_t groups = forward.num_sequences * forward.kv_heads;
  std::vector<std::uint32_t> finished;
  std::unique_ptr<float[]> sums;
  if (job.grads->grad_query.data != nullptr && size_of(forward.dtype) == 2) {
    // One more than there are threads, so that no thread waits for the last units of a head.
    job.slots = std::min<std::int64_t>(groups, num_threads() + 1);
    std::int64_t longest = 0;
    for (std::int64_t s = 0; s < forward.num_sequences; ++s) longest = std::max(longest, forward.sequences[s].queries);
    job.slot_size =
        forward.heads / forward.kv_heads * longest * (forward.head_dim + kMostLanes - 1) / kMostLanes * kMostLanes;
    sums = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(job.slots * job.slot_size));
    job.sums = sums.get();
    finished.resize(static_cast<std::size_t>(groups));
    job.finished = finished.data();
  }
  run_units(kernels.attention_backward, job, first.back());
}

void fill_with_zeros(const HeadTensor& tensor, DType dtype, const std::int64_t (&shape)[4]) {
  const std::int64_t size = size_of(dtype);
  for (std::int64_t b = 0; b < shape[0]; ++b) {
    for (std::int64_t h = 0; h < shape[1]; ++h) {
      for (std::int64_t row = 0; row < shape[2]; ++row) {
        char* at = static_cast<char*>(tensor.data) + (tensor.offset(b, h) + row * tensor.row) * size;
        for (std::int64_t column = 0; column < shape[3]; ++column) {
          memset(at + column * tensor.column * size, 0, static_cast<std::size_t>(size));
        }
      }
    }
  }
}

void run_grad_mask(AttentionBackwardJob& job) {
  const AttentionJob& forward = *job.forward;
  const AttentionGrads& grads = *job.grads;
  const CpuKernels& kernels = cpu_kernels();
  // The units write the elements of sequences: others, between those that are packed and where there are none, are
  // zero.
  if (grads.grad_mask_needs_zeros) fill_with_zeros(grads.grad_mask, grads.grad_mask_dtype, grads.grad_mask_shape);
  if (forward.num_sequences == 0 || forward.heads == 0) return;
  const std::int64_t heads = grads.mask_has_head ? forward.heads : 1;
  const auto count = [&](const AttentionSequence& sequence) {
    const GradMaskTiles tiles(grads, sequence, kernels.attention_key_block);
    return heads * tiles.queries * tiles.keys;
  };
  std::vector<std::int64_t> first;
  if (grads.mask_has_batch) {
    first = first_units(forward, count);
  } else {
    first = {0, count(forward.sequences[0])};
  }
  job.first_mask_unit = first.data();
  run_units(kernels.attention_grad_mask, job, first.back());
}

}  // namespace

void cpu_attention_backward(const AttentionJob& job, const AttentionGrads& grads, const Stream& /*stream*/) {
  AttentionBackwardJob units{};
  units.forward = &job;
  units.grads = &grads;
  const bool any =
      grads.grad_query.data != nullptr || grads.grad_key.data != nullptr || grads.grad_value.data != nullptr;
  if (any && job.kv_heads > 0 && job.num_sequences > 0) run_backward(units);
  if (grads.grad_mask.data != nullptr) run_grad_mask(units);
}

}  // namespace fusestep
