// The arguments of the attention kernels: pointers and strides of checked tensors, the list of sequences, the options
// in the form that the formulas use. The same for every backend.
#pragma once

#include <cstdint>

#include "math/attention/mask.h"
#include "math/dropout.h"
#include "tensors/view.h"

namespace fusestep {

inline constexpr std::int64_t kMaxHeadDim = 256;

// Queries that one block holds. Blocks are counted from the start of their sequence, on any number of threads: the bits
// of the result depend on the partition alone.
inline constexpr std::int64_t kQueryBlock = 64;

// An array of (batch, head, row, column); strides in elements. A packed one has a batch stride of 0: its sequences
// differ in their first rows.
struct HeadTensor {
  void* data;  // nullptr: there is none
  std::int64_t batch;
  std::int64_t head;
  std::int64_t row;
  std::int64_t column;

  // The address, in elements from data, of row 0 and column 0.
  FUSESTEP_HD std::int64_t offset(std::int64_t b, std::int64_t h) const { return b * batch + h * head; }
};

// Sequences are the rows of a batch, or follow each other along the rows of one array when they are packed.
struct AttentionSequence {
  std::int64_t batch;        // its number: dropout, ALiBi and HeadTensor::batch count by it
  std::int64_t query_begin;  // its first row among the queries: 0 in a batch
  std::int64_t key_begin;
  std::int64_t queries;
  std::int64_t keys;  // rows that it has; band.keys of them take part
  Band band;
  std::int64_t
      first_block;  // its first one in the list of all query blocks; it has heads * ceil(queries / kQueryBlock)
};

// An array of int32 or int64: lengths or offsets. data nullptr: there is none.
struct IntegerArray {
  const void* data;
  std::int64_t stride;  // in elements
  DType dtype;

  FUSESTEP_HD std::int64_t operator[](std::int64_t i) const {
    // NOLINTBEGIN(clang-analyzer-core.NullDereference): packed sequences have both arrays of offsets
    return dtype == DType::int32 ? static_cast<const std::int32_t*>(data)[i * stride]
                                 : static_cast<const std::int64_t*>(data)[i * stride];
    // NOLINTEND(clang-analyzer-core.NullDereference)
  }
};

// What the sequences follow from.
struct AttentionLayout {
  Causal causal;
  std::int64_t window_left;
  std::int64_t window_right;
  bool packed;
  std::int64_t batch;    // rows of the batch, or packed sequences
  std::int64_t queries;  // of each row of a batch; of all packed sequences
  std::int64_t keys;
  IntegerArray key_lengths;  // where they lie on a device, so do the others
  IntegerArray cu_seqlens_q;
  IntegerArray cu_seqlens_k;

  // Packed arrays have one more than `batch`: the rows that belong to no sequence. They attend to nothing.
  FUSESTEP_HD std::int64_t count() const { return packed ? batch + 1 : batch; }

  // Sequence n, without its first_block. Lengths on a device were not checked: they are limited to the rows that exist.
  FUSESTEP_HD AttentionSequence sequence(std::int64_t n) const {
    AttentionSequence sequence{};
    sequence.batch = n;
    if (packed) {
      sequence.query_begin = limited(cu_seqlens_q[n], 0, queries);
      sequence.key_begin = limited(cu_seqlens_k[n], 0, keys);
      const bool rest = n == batch;
      sequence.queries =
          (rest ? queries : limited(cu_seqlens_q[n + 1], sequence.query_begin, queries)) - sequence.query_begin;
      sequence.keys = (rest ? keys : limited(cu_seqlens_k[n + 1], sequence.key_begin, keys)) - sequence.key_begin;
    } else {
      sequence.queries = queries;
      sequence.keys = keys;
    }
    std::int64_t key_length = sequence.keys;
    if (n == batch) {
      key_length = 0;
    } else if (key_lengths.data != nullptr) {
      key_length = limited(key_lengths[n], 0, key_length);
    }
    sequence.band = make_band(causal, window_left, window_right, sequence.queries, key_length);
    return sequence;
  }

  FUSESTEP_HD static std::int64_t limited(std::int64_t value, std::int64_t least, std::int64_t most) {
    return value < least ? least : value > most ? most : value;
  }
};

struct AttentionJob {
  DType dtype;  // of query, key, value, out and their gradients
  std::int64_t heads;
  std::int64_t kv_heads;  // head h reads key and value head h / (heads / kv_heads)
  std::int64_t head_dim;
  std::int64_t value_dim;
  HeadTensor query;
  HeadTensor key;
  HeadTensor value;
  HeadTensor out;
  HeadTensor lse;    // float; double where dtype is. column: 0. data nullptr: the forward pass writes none
  HeadTensor mask;   // (batch, head, query, key), stride 0 where broadcast
  DType mask_dtype;  // boolean (false excludes) or additive floats
  HeadTensor alibi;  // (batch, head); row, column: 0
  DType alibi_dtype;
  double scale;
  double softcap;  // 0: none
  DropoutRule dropout;
  AttentionLayout layout;
  const AttentionSequence* sequences;  // all of the layout's; nullptr where its lengths lie on a device
  std::int64_t num_sequences;
  std::int64_t query_blocks;  // of all sequences and heads

  FUSESTEP_HD std::int64_t kv_head(std::int64_t head) const { return head / (heads / kv_heads); }
};

// What the backward pass reads and writes beside the job's own arrays. Each gradient may be absent.
struct AttentionGrads {
  HeadTensor grad_out;
  HeadTensor grad_query;
  HeadTensor grad_key;
  HeadTensor grad_value;
  HeadTensor grad_mask;  // (batch, head, query, key)
  DType grad_mask_dtype;
  std::int64_t grad_mask_shape[4];  // 1 where it was broadcast
  bool grad_mask_needs_zeros;       // it has elements that belong to no sequence
  // The dimensions that the mask has; its gradient is summed up over the others. A packed mask counts as one that has a
  // batch if it has queries or keys: sequences share none of them.
  bool mask_has_batch;
  bool mask_has_head;
  bool mask_has_query;
  bool mask_has_key;
};

}  // namespace fusestep
