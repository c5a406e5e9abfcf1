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

// Rows in scratch are padded to the vectors of any instruction set, and to the steps of its products.
constexpr std::int64_t kMostPadding = std::max<std::int64_t>(16, kTileBlock);

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Five products for the forward pass's two.
double backward_flops(const AttentionJob& job) { return 2.5 * forward_flops(job); }

void run_backward(AttentionBackwardJob& job) {
  const AttentionJob& forward = *job.forward;
  const CpuKernels& kernels = cpu_kernels();
  const Bf16Attention& bf16 = kernels.bf16_attention;
  const bool packs = takes_bf16_products(forward);
  const double flops = backward_flops(forward);
  const std::int64_t key_block = packs ? bf16.key_block : kernels.attention_key_block;
  const std::vector<std::int64_t> first = first_units(forward, [&](const AttentionSequence& sequence) {
    return forward.kv_heads * attention_blocks(sequence.keys, key_block);
  });
  job.first_unit = first.data();
  std::unique_ptr<void, FreePacked> packed;
  if (packs) {
    packed = packed_memory(forward.query_blocks * bf16.backward_pack_bytes(forward));
    job.packed = packed.get();
    run_units(flops, forward.query_blocks, [&](std::int64_t block) { bf16.pack_queries(job, block); });
  }
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
    job.slot_size = forward.heads / forward.kv_heads * longest * round_up(forward.head_dim, kMostPadding);
    sums = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(job.slots * job.slot_size));
    job.sums = sums.get();
    finished.resize(static_cast<std::size_t>(groups));
    job.finished = finished.data();
  }
  const auto run = packs ? bf16.backward : kernels.attention_backward;
  run_units(flops, first.back(), [&](std::int64_t unit) { run(job, unit); });
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
  run_units(backward_flops(forward), first.back(), [&](std::int64_t unit) { kernels.attention_grad_mask(job, unit); });
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
