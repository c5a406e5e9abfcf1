#include <algorithm>

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

void cpu_attention_forward(const AttentionJob& job, const Stream& /*stream*/) {
  if (job.query_blocks == 0) return;
  const double flops = forward_flops(job);
  // A claim is a large part of a head, so that its keys and values stay in one cache, but small enough that threads
  // finish at about the same time.
  const std::int64_t a_head = (longest_sequence(job) + kQueryBlock - 1) / kQueryBlock;
  const std::int64_t a_claim = flops < kAloneFlops
                                   ? job.query_blocks
                                   : std::clamp<std::int64_t>(job.query_blocks / (16 * num_threads()), 1, a_head);
  const auto run_claim = [&](std::int64_t claim) {
    const std::int64_t first = claim * a_claim;
    cpu_kernels().attention_forward(job, first, std::min(first + a_claim, job.query_blocks));
  };
  parallel_for((job.query_blocks + a_claim - 1) / a_claim, run_claim);
}

}  // namespace fusestep
