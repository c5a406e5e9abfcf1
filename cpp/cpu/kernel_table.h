// The table that each CPU instruction set fills with its kernels: one slice of a job each. cpu/backend.cpp shares the
// slices out among threads.
#pragma once

#include "jobs/attention.h"
#include "jobs/cross_entropy.h"
#include "jobs/dropout.h"
#include "jobs/grads.h"
#include "jobs/masked_softmax.h"
#include "jobs/step.h"
#include "math/lowp.h"

namespace fusestep {

struct UpdateJob {
  const UpdateTensor* tensors;  // [num_tensors], then one more, whose begin is numel
  std::int64_t num_tensors;
  std::int64_t numel;
  const unsigned char* coefficients;
  GradTransform<double> transform;
};

enum class StreamAccess { update, read, write };  // update: read, and written back as it was

// One of the arrays that the benchmarks' floor moves; all have the same number of elements.
struct StreamArray {
  unsigned char* data;
  std::int64_t element_bytes;
  StreamAccess access;
};

// The backward pass of attention. A unit is a block of keys of one key and value head, for all queries and heads that
// read it: it holds the gradients of its keys and values, and adds to those of the queries when its turn has come.
struct AttentionBackwardJob {
  const AttentionJob* forward;
  const AttentionGrads* grads;
  const std::int64_t* first_unit;  // of each sequence, then the end: kv_heads * attention_tiles(keys, ...)
  std::uint32_t* turns;            // of each query block: how many blocks of keys have added to it

  // 16-bit gradients of queries are summed up here, in float: nullptr for others. Key and value heads take the slots in
  // turn, each when all units of the one before it in the slot have finished.
  float* sums;
  std::int64_t slots;
  std::int64_t slot_size;   // in floats
  std::uint32_t* finished;  // of each key and value head of each sequence: units

  void* packed;  // what pack_queries filled (Bf16Attention), 64 bytes aligned; else nullptr

  // The mask's gradient is a pass of its own. A unit is a tile of the mask's elements.
  const std::int64_t* first_mask_unit;  // of each sequence, then the end; of all together if the mask has no batch
};

// How many blocks cover the rows. At least one, which writes the zeros where there are no rows.
constexpr std::int64_t attention_blocks(std::int64_t rows, std::int64_t block) {
  return rows == 0 ? 1 : (rows + block - 1) / block;
}

// The tiles of one head of a mask's gradient.
struct GradMaskTiles {
  std::int64_t queries;
  std::int64_t keys;

  GradMaskTiles(const AttentionGrads& grads, const AttentionSequence& sequence, std::int64_t key_block)
      : queries(grads.mask_has_query ? attention_blocks(sequence.queries, kQueryBlock) : 1),
        keys(grads.mask_has_key ? attention_blocks(sequence.keys, key_block) : 1) {}
};

// The backward pass of the masked softmax.
struct SoftmaxBackwardJob {
  const SoftmaxJob* forward;
  const SoftmaxGrads* grads;
  void* partial;  // [block][mask column], float or double: where a mask's row gets parts from several blocks
};

// The forward pass on packed keys and values. A block of them is kKeyBlock keys of one head of one sequence.
struct PackedForwardJob {
  const AttentionJob* forward;
  const std::int64_t* first_block;  // of each sequence, then the end: kv_heads * attention_blocks(band.keys, ...)
  BFloat16* packed;                 // 64 bytes aligned
};

inline constexpr std::int64_t kTileBlock = 32;

// c[32][32] = a[32][32 * steps] . b[32 * steps][32], or added to what c holds: 2 x 2 tiles of 16 x 16 sums.
struct TileBlock {
  const BFloat16* a;  // rows a_row apart; each step's 32 columns a_step after those of the step before
  std::int64_t a_row;
  std::int64_t a_step;
  const BFloat16*
      b;  // tiles of [16 pairs of rows][16 columns][2]: b_step from step to step, b_column to the other half
  std::int64_t b_step;
  std::int64_t b_column;
  float* c;
  std::int64_t c_row;
  std::int64_t steps;
  bool adds;
};

// Attention of bfloat16 on instructions that multiply bfloat16. What products read over and over is packed first.
struct Bf16Attention {
  std::int64_t key_block;

  // Bytes that one block needs; packs one block of keys; query blocks [first, last) on packed keys.
  std::int64_t (*forward_pack_bytes)(const AttentionJob&);
  void (*pack_keys)(const PackedForwardJob&, std::int64_t block);
  void (*forward)(const PackedForwardJob&, std::int64_t first, std::int64_t last);

  // The same of query blocks, and one unit on packed queries.
  std::int64_t (*backward_pack_bytes)(const AttentionJob&);
  void (*pack_queries)(const AttentionBackwardJob&, std::int64_t block);
  void (*backward)(const AttentionBackwardJob&, std::int64_t unit);

  // For tests: one product; 32 floats as a row of the left factor, 16 columns of two rows as a row of the right one.
  void (*multiply)(const TileBlock&);
  void (*narrow)(const float* even, const float* odd, BFloat16* row, BFloat16* pairs);
};

struct CpuKernels {
  const char* name;

  // update[variant][Arithmetic]: one slice of an optimizer step.
  void (*update[UpdateVariants::size][kArithmetics])(const UpdateJob&, std::int64_t slice);

  // norm[NormKind]: the slice's sum of |g|, sum of g^2 or max of |g|, in double.
  double (*norm[3])(const GradJob&, std::int64_t slice);

  // One slice of g <- transform(g).
  void (*transform)(const GradJob&, GradTransform<double>, std::int64_t slice);

  // One slice of out <- dropout(input), or of out <- residual + dropout(input).
  void (*dropout)(const DropoutJob&, std::int64_t slice);

  // Query blocks [first, last) of a job's list: their rows of out and lse.
  void (*attention_forward)(const AttentionJob&, std::int64_t first, std::int64_t last);

  // One unit of the backward pass, and one of the mask's gradient. Blocks are of attention_key_block keys.
  std::int64_t attention_key_block;
  void (*attention_backward)(const AttentionBackwardJob&, std::int64_t unit);
  void (*attention_grad_mask)(const AttentionBackwardJob&, std::int64_t unit);

  // All nullptr where the instruction set has no products of bfloat16.
  Bf16Attention bf16_attention;

  // Rows [first, last) of a masked softmax; one block of its backward pass (jobs/softmax_blocks.h); one row of the
  // mask's gradient from the parts that the blocks have left.
  void (*softmax_forward)(const SoftmaxJob&, std::int64_t first, std::int64_t last);
  void (*softmax_backward)(const SoftmaxBackwardJob&, std::int64_t block);
  void (*softmax_grad_mask)(const SoftmaxBackwardJob&, std::int64_t mask_row);

  // One row of a cross-entropy and its gradient.
  // Writes the gradient of a row, times `scale`.
  CrossEntropyResult (*cross_entropy)(const CrossEntropyJob&, std::int64_t row, double scale);

  // The floor that benchmarks compare with: elements [begin, end) of every array are read, written back, or both.
  void (*stream)(const StreamArray* arrays, int num_arrays, std::int64_t begin, std::int64_t end);

  // The ceiling that benchmarks compare with: multiply-adds in registers. Returns how many operations they were.
  std::int64_t (*fma_peak)(std::int64_t iterations);
};

// Those of the level that dispatch.cpp has chosen.
const CpuKernels& cpu_kernels();

}  // namespace fusestep
