// The backward pass of attention on products of bfloat16. Queries and their output gradients are packed once for all
// blocks of keys and threads, and so is what the softmax needs of each query. The units are those of the pass in float
// (attention/backward_unit.h) with another tile.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/kernels/attention/backward_rows.h"
#include "cpu/kernels/attention/backward_unit.h"
#include "cpu/kernels/attention/blocks.h"
#include "cpu/kernels/attention/score_tile.h"
#include "cpu/kernels/attention_bf16/kernels.h"
#include "cpu/kernels/attention_bf16/pack.h"
#include "cpu/kernels/attention_bf16/tile_product.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Where queries are packed: those of each block of kQueryBlock in the list of all follow those of the block before.
struct PackedQueries {
  BFloat16* queries;    // rows
  BFloat16* grads;      // rows of grad_out
  BFloat16* queries_t;  // transposed
  BFloat16* grads_t;    // transposed
  float* lse;           // in base 2; inf for rows that attend to nothing
  float* delta;         // grad_out . out

  PackedQueries(const AttentionBackwardJob& job, std::int64_t block) {
    const AttentionJob& forward = *job.forward;
    const std::int64_t all = forward.query_blocks * kQueryBlock;
    const std::int64_t row = block * kQueryBlock;
    const std::int64_t dim = padded(forward.head_dim);
    const std::int64_t value_dim = padded(forward.value_dim);
    auto* const elements = static_cast<BFloat16*>(job.packed);
    queries = elements + row * dim;
    queries_t = elements + (all + row) * dim;
    grads = elements + 2 * all * dim + row * value_dim;
    grads_t = elements + 2 * all * dim + (all + row) * value_dim;
    lse = reinterpret_cast<float*>(elements + 2 * all * (dim + value_dim)) + row;
    delta = lse + all;
  }
};

std::int64_t backward_pack_bytes(const AttentionJob& job) {
  return kQueryBlock * (4 * (padded(job.head_dim) + padded(job.value_dim)) + 2 * 4);
}

void pack_queries(const AttentionBackwardJob& backward, std::int64_t block) {
  const AttentionJob& job = *backward.forward;
  const QueryBlock at = query_block(job, block);
  const std::int64_t queries = std::min<std::int64_t>(kQueryBlock, at.sequence.queries - at.query0);
  const auto offset = [&](const HeadTensor& tensor) {
    return tensor.offset(at.sequence.batch, at.head) + (at.sequence.query_begin + at.query0) * tensor.row;
  };
  const std::int64_t dim = padded(job.head_dim);
  const std::int64_t value_dim = padded(job.value_dim);
  BFloat16* out = nullptr;
  float* lanes = nullptr;
  carve_scratch([&](Arena& arena) {
    out = arena.take<BFloat16>(kTileBlock * value_dim);
    lanes = arena.take<float>(kTileBlock * Vec<float>::kWidth);
  });
  const PackedQueries to(backward, block);
  const auto* lse = static_cast<const float*>(job.lse.data) + offset(job.lse);
  for (std::int64_t row = 0; row < kQueryBlock; row += kTileBlock) {
    const std::int64_t rows = queries - row;
    const auto pack = [&](const HeadTensor& tensor, std::int64_t columns, BFloat16* rows_to) {
      pack_rows(tensor, offset(tensor) + row * tensor.row, rows, columns, rows_to);
    };
    pack(job.query, job.head_dim, to.queries + row * dim);
    pack_transposed(to.queries + row * dim, dim, to.queries_t + row * dim);
    const BFloat16* const grads = to.grads + row * value_dim;
    pack(backward.grads->grad_out, job.value_dim, to.grads + row * value_dim);
    pack_transposed(grads, value_dim, to.grads_t + row * value_dim);
    pack(job.out, job.value_dim, out);
    store_deltas(grads, value_dim, out, value_dim, kTileBlock, value_dim, lanes, to.delta + row);
    for (std::int64_t r = 0; r < kTileBlock; ++r) {
      to.lse[row + r] = r < rows ? lse_in_base2(lse[(row + r) * job.lse.row]) : std::numeric_limits<float>::infinity();
    }
  }
}

class Bf16BackwardTile : ScoreTile<float, 2 * kQueryBlock, kTileBlock, false> {
  using Scores = ScoreTile<float, 2 * kQueryBlock, kTileBlock, false>;

 public:
  using Element = float;
  // Two blocks of the list: the sums for keys and values are then read and written half as often.
  static constexpr std::int64_t kQueries = 2 * kQueryBlock;

  explicit Bf16BackwardTile(const AttentionBackwardJob& job)
      : Scores(*job.forward),
        backward_(job),
        query_stride_(padded(job_.head_dim)),
        value_stride_(padded(job_.value_dim)) {}

  void carve(Arena& arena) {
    Scores::carve(arena);
    rows_ = arena.take<BFloat16>(kTileBlock * std::max(query_stride_, value_stride_));
    keys_for_scores_ = arena.take<BFloat16>(kKeyBlock * query_stride_);
    values_for_grads_ = arena.take<BFloat16>(kKeyBlock * value_stride_);
    keys_for_queries_ = arena.take<BFloat16>(kKeyBlock * query_stride_);
    weights_ = arena.take<float>(kTileBlock * kKeyBlock);
    score_grads_ = arena.take<float>(kTileBlock * kKeyBlock);
    weight_pairs_ = arena.take<BFloat16>(kQueries * kKeyBlock);
    score_grad_pairs_ = arena.take<BFloat16>(kQueries * kKeyBlock);
    score_grad_rows_ = arena.take<BFloat16>(kQueries * kKeyBlock);
  }

  void carve_grads(Arena& arena) {
    key_grads_t_ = arena.take<float>(query_stride_ * kKeyBlock);
    value_grads_t_ = arena.take<float>(value_stride_ * kKeyBlock);
    turned_ = arena.take<float>(kKeyBlock * std::max(query_stride_, value_stride_));
  }

  void start_keys(const AttentionSequence& sequence, std::int64_t kv_head, std::int64_t key0, std::int64_t keys) {
    Scores::start_keys(sequence, key0, keys);
    const auto pack = [&](const HeadTensor& tensor, std::int64_t key, std::int64_t columns) {
      const std::int64_t offset =
          tensor.offset(sequence.batch, kv_head) + (sequence.key_begin + key0 + key) * tensor.row;
      // Keys beyond the length are not looked at, whatever they are.
      pack_rows(tensor, offset, std::min(keys, sequence.band.keys - key0) - key, columns, rows_);
    };
    for (std::int64_t key = 0; key < keys; key += kTileBlock) {
      pack(job_.key, key, job_.head_dim);
      pack_pairs_of_columns(rows_, query_stride_, keys_for_scores_ + key * query_stride_);
      pack_pairs_of_rows(rows_, query_stride_, keys_for_queries_ + key * query_stride_);
      pack(job_.value, key, job_.value_dim);
      pack_pairs_of_columns(rows_, value_stride_, values_for_grads_ + key * value_stride_);
    }
  }

  void start_grads() {
    std::fill_n(key_grads_t_, query_stride_ * kKeyBlock, 0.0f);
    std::fill_n(value_grads_t_, value_stride_ * kKeyBlock, 0.0f);
  }

  using Scores::start_head;
  using Scores::start_queries;

  // Computes the weights after dropout and the gradients of the scores (attention/backward_tile.h), panel by panel of
  // kTileBlock queries, and rounds them.
  void compute(bool before_cap, bool needs_score_grads) {
    const std::int64_t a_head = round_up(sequence_->queries, kQueryBlock);
    const PackedQueries packed(backward_, sequence_->first_block + (head_ * a_head + query0_) / kQueryBlock);
    packed_queries_ = packed.queries_t;
    packed_grads_ = packed.grads_t;
    panels_ = (query_count_ + kTileBlock - 1) / kTileBlock;
    for (std::int64_t p = 0; p < panels_; ++p) {
      const std::int64_t row = p * kTileBlock;
      const std::int64_t rows = std::min<std::int64_t>(kTileBlock, query_count_ - row);
      const PositionRange range = keys_of_rows(row, row + rows);
      const bool none = range.begin == range.end;
      panel_keys_[p] = {none ? 0 : range.begin / kTileBlock * kTileBlock, none ? 0 : round_up(range.end, kTileBlock)};
      if (none) continue;
      multiply_scores(packed.queries + row * query_stride_, query_stride_, keys_for_scores_, panel_keys_[p], weights_);
      if (needs_score_grads) {
        multiply_scores(packed.grads + row * value_stride_, value_stride_, values_for_grads_, panel_keys_[p],
                        score_grads_);
      }
      weigh(row, row + rows, weights_, score_grads_, packed.lse, packed.delta, before_cap);
      std::fill(weights_ + rows * kKeyBlock, weights_ + kTileBlock * kKeyBlock, 0.0f);
      std::fill(score_grads_ + rows * kKeyBlock, score_grads_ + kTileBlock * kKeyBlock, 0.0f);
      round_panel(p, needs_score_grads);
    }
  }

  void add_value_grads() { add_over_queries(packed_grads_, value_stride_, weight_pairs_, value_grads_t_); }
  void add_key_grads() { add_over_queries(packed_queries_, query_stride_, score_grad_pairs_, key_grads_t_); }

  // Each is valid until the next call of either.
  const float* key_grads() const { return turned(key_grads_t_, query_stride_); }
  const float* value_grads() const { return turned(value_grads_t_, value_stride_); }

  // grad_queries[query] = score_grads . keys; missing the scale.
  void query_grads(float* grad_queries) const {
    for (std::int64_t p = 0; p < panels_; ++p) {
      const auto [from, to] = panel_keys_[p];
      const std::int64_t row = p * kTileBlock;
      for (std::int64_t column = 0; column < query_stride_; column += kTileBlock) {
        TileProduct::multiply({score_grad_rows_ + row * kKeyBlock + from, kKeyBlock, kTileBlock,
                               keys_for_queries_ + from * query_stride_ + column / 16 * kTile,
                               query_stride_ / 16 * kTile, kTile, grad_queries + row * query_stride_ + column,
                               query_stride_, (to - from) / kTileBlock, false});
      }
    }
  }

  std::int64_t query_stride() const { return query_stride_; }
  std::int64_t value_stride() const { return value_stride_; }

 private:
  // products[row][key] = rows . keys, for the keys of the panel. `keys`: pairs of columns.
  static void multiply_scores(const BFloat16* rows, std::int64_t stride, const BFloat16* keys, PositionRange range,
                              float* products) {
    for (std::int64_t key = range.begin; key < range.end; key += kTileBlock) {
      TileProduct::multiply({rows, stride, kTileBlock, keys + key * stride, kTile, stride / kTileBlock * kTile,
                             products + key, kKeyBlock, stride / kTileBlock, false});
    }
  }

  void round_panel(std::int64_t p, bool score_grads) {
    const std::int64_t panel = p * kTileBlock * kKeyBlock;
    for (std::int64_t key = panel_keys_[p].begin; key < panel_keys_[p].end; key += kTileBlock) {
      for (std::int64_t r = 0; r < kTileBlock && score_grads; ++r) {
        TileProduct::narrow(score_grads_ + r * kKeyBlock + key, score_grad_rows_ + panel + r * kKeyBlock + key);
      }
      for (std::int64_t half = key; half < key + kTileBlock; half += 16) {
        for (std::int64_t pair = 0; pair < 16; ++pair) {
          const std::int64_t from = 2 * pair * kKeyBlock + half;
          const std::int64_t to = panel + half / 16 * kTile + pair * 32;
          TileProduct::narrow_pairs(weights_ + from, weights_ + from + kKeyBlock, weight_pairs_ + to);
          if (!score_grads) continue;
          TileProduct::narrow_pairs(score_grads_ + from, score_grads_ + from + kKeyBlock, score_grad_pairs_ + to);
        }
      }
    }
  }

  // sums[column][key] += rows^T . pairs. The panels that look at a step of keys follow each other: both ends of what a
  // query looks at never fall from one query to the next.
  void add_over_queries(const BFloat16* rows_t, std::int64_t stride, const BFloat16* pairs, float* sums) const {
    for (std::int64_t key = 0; key < columns_; key += kTileBlock) {
      // NOLINTNEXTLINE(clang-analyzer-security.ArrayBound): panels_ is at most the length of panel_keys_
      const auto looks = [&](std::int64_t p) { return panel_keys_[p].begin <= key && key < panel_keys_[p].end; };
      std::int64_t first = 0;
      while (first < panels_ && !looks(first)) ++first;
      std::int64_t last = first;
      while (last < panels_ && looks(last)) ++last;
      if (first == last) continue;
      for (std::int64_t column = 0; column < stride; column += kTileBlock) {
        TileProduct::multiply({rows_t + first * kTileBlock * stride + column * kTileBlock, kTileBlock,
                               kTileBlock * stride, pairs + first * kTileBlock * kKeyBlock + key / 16 * kTile,
                               kTileBlock * kKeyBlock, kTile, sums + column * kKeyBlock + key, kKeyBlock, last - first,
                               true});
      }
    }
  }

  const float* turned(const float* sums_t, std::int64_t stride) const {
    transpose_floats(sums_t, kKeyBlock, stride, kKeyBlock, turned_, stride);
    return turned_;
  }

  const AttentionBackwardJob& backward_;
  const std::int64_t query_stride_;
  const std::int64_t value_stride_;

  std::int64_t panels_ = 0;
  PositionRange panel_keys_[kQueries / kTileBlock];  // in whole steps of a product
  const BFloat16* packed_queries_ = nullptr;         // of the tile, transposed
  const BFloat16* packed_grads_ = nullptr;

  BFloat16* rows_;              // while keys are packed
  BFloat16* keys_for_scores_;   // pairs of columns
  BFloat16* values_for_grads_;  // pairs of columns
  BFloat16* keys_for_queries_;  // pairs of rows
  float* weights_;              // of one panel
  float* score_grads_;          // of one panel
  BFloat16* weight_pairs_;      // [panel]: pairs of rows
  BFloat16* score_grad_pairs_;  // [panel]: pairs of rows
  BFloat16* score_grad_rows_;   // [query][key]
  float* key_grads_t_;          // [query_stride_][key]
  float* value_grads_t_;        // [value_stride_][key]
  float* turned_;               // [key][query_stride_ or value_stride_]
};

void backward(const AttentionBackwardJob& job, std::int64_t unit) {
  const TileProduct::Session session;
  BackwardUnit<Bf16BackwardTile>(job).run(unit);
}

}  // namespace

void fill_bf16_backward(Bf16Attention& kernels) {
  kernels.backward_pack_bytes = backward_pack_bytes;
  kernels.pack_queries = pack_queries;
  kernels.backward = backward;
}

}  // namespace fusestep::FUSESTEP_ISA
