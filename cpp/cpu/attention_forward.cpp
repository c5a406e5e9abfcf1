#include <algorithm>
#include <vector>

#include "cpu/attention.h"
#include "cpu/kernel_table.h"
#include "threads/threads.h"

namespace fusestep {

namespace {

std::int64_t longest_sequence(const AttentionJob& job) {
  std::int64_t longest = 0;
  for (std::int64_t s = 0; s < job.num_sequences; ++s) longest = std::max(longest, job.sequences[s].queries);
  return longest;
}

}  // namespace

double forward_flops(const AttentionJob& job) {
  double scores = 0;
  for (std::int64_t s = 0; s < job.num_sequences; ++s) {
    const AttentionSequence& sequence = job.sequences[s];
    scores += static_cast<double>(job.heads * sequence.queries) * static_cast<double>(sequence.band.keys);
  }
  return 2 * scores * static_cast<double>(job.head_dim + job.value_dim);
}

namespace {

// Query blocks in claims: run(first, last).
template <class Run>
void run_claims(const AttentionJob& job, double flops, const Run& run) {
  // A claim is a large part of a head, so that its keys and values stay in one cache, but small enough that threads
  // finish at about the same time.
  const std::int64_t a_head = (longest_sequence(job) + kQueryBlock - 1) / kQueryBlock;
  const std::int64_t a_claim = flops < kAloneFlops
                                   ? job.query_blocks
                                   : std::clamp<std::int64_t>(job.query_blocks / (16 * num_threads()), 1, a_head);
  parallel_for((job.query_blocks + a_claim - 1) / a_claim, [&](std::int64_t claim) {
    const std::int64_t first = claim * a_claim;
    run(first, std::min(first + a_claim, job.query_blocks));
  });
}

void forward_on_bf16_products(const AttentionJob& job, double flops) {
  const Bf16Attention& kernels = cpu_kernels().bf16_attention;
  const std::vector<std::int64_t> first = first_units(job, [&](const AttentionSequence& sequence) {
    return job.kv_heads * attention_blocks(sequence.band.keys, kernels.key_block);
  });
  const auto packed = packed_memory(first.back() * kernels.forward_pack_bytes(job));
  const PackedForwardJob packed_job{&job, first.data(), static_cast<BFloat16*>(packed.get())};
  run_units(flops, first.back(), [&](std::int64_t block) { kernels.pack_keys(packed_job, block); });
  run_claims(job, flops, [&](std::int64_t begin, std::int64_t end) { kernels.forward(packed_job, begin, end); });
}

}  // namespace

void cpu_attention_forward(const AttentionJob& job, const Stream& /*stream*/) {
  if (job.query_blocks == 0) return;
  const double flops = forward_flops(job);
  if (takes_bf16_products(job)) return forward_on_bf16_products(job, flops);
  run_claims(job, flops,
             [&](std::int64_t first, std::int64_t last) { cpu_kernels().attention_forward(job, first, last); });
}

}  // namespace fusestep
