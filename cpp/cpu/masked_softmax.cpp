#include "cpu/masked_softmax.h"

#include <algorithm>
#include <vector>

#include "cpu/kernel_table.h"
#include "jobs/softmax_blocks.h"
#include "threads/threads.h"

namespace fusestep {

namespace {

// body(first, last) for pieces of [0, count) of at least 4096 scores; `scores` are those of one unit.
template <class Body>
void for_each_piece(std::int64_t count, std::int64_t scores, const Body& body) {
  scores = std::max<std::int64_t>(scores, 1);
  const std::int64_t least = std::max<std::int64_t>(4096 / scores, 1);
  const std::int64_t a_piece = std::max(least, count / (8 * num_threads()));
  const auto run_piece = [&](std::int64_t piece) { body(piece * a_piece, std::min(count, (piece + 1) * a_piece)); };
  parallel_for((count + a_piece - 1) / a_piece, run_piece);
}

}  // namespace

void cpu_masked_softmax_forward(const SoftmaxJob& job, const Stream& /*stream*/) {
  for_each_piece(job.rows(), job.keys,
                 [&](std::int64_t first, std::int64_t last) { cpu_kernels().softmax_forward(job, first, last); });
}

void cpu_masked_softmax_backward(const SoftmaxJob& job, const SoftmaxGrads& grads, const Stream& /*stream*/) {
  const SoftmaxBlocks blocks(job, grads);
  const bool combines = grads.grad_mask.data != nullptr && blocks.per_mask_row != 1;
  const std::size_t itemsize = job.dtype == DType::float64 ? sizeof(double) : sizeof(float);
  std::vector<unsigned char> partial;
  if (combines) partial.resize(static_cast<std::size_t>(blocks.count() * blocks.mask_columns) * itemsize + 1);
  const SoftmaxBackwardJob backward{&job, &grads, combines ? partial.data() : nullptr};
  const std::int64_t scores_of_block = std::min(blocks.members, kSoftmaxBlock) * job.keys;
  for_each_piece(blocks.count(), scores_of_block, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) cpu_kernels().softmax_backward(backward, block);
  });
  if (!combines) return;
  for_each_piece(blocks.mask_rows, blocks.per_mask_row * blocks.mask_columns,
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t row = first; row < last; ++row) cpu_kernels().softmax_grad_mask(backward, row);
                 });
}

}  // namespace fusestep
