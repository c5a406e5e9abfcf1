// A tile of the backward pass: a block of keys by a block of queries. The weights are computed again from the
// log-sum-exp, then the gradients of the scores from the weights. Both are stored as [query][key].
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/attention/backward_rows.h"
#include "cpu/kernels/attention/gemm.h"
#include "cpu/kernels/attention/score_tile.h"
#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/tiles.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Rows of a product's result that one block of registers holds, and the range of the other dimension that they need.
struct Strip {
  std::int64_t first;
  std::int64_t rows;
  std::int64_t begin;
  std::int64_t end;
};
inline constexpr int kQueryStrips = (kQueryBlock + kRowBlock - 1) / kRowBlock;
inline constexpr int kKeyStrips = (kKeyBlock + kRowBlock - 1) / kRowBlock;

template <class T>
class BackwardTile : ScoreTile<T, kQueryBlock, Vec<T>::kWidth, true> {
  using Scores = ScoreTile<T, kQueryBlock, Vec<T>::kWidth, true>;
  using Scores::begin_;
  using Scores::columns_;
  using Scores::end_;
  using Scores::job_;
  using Scores::key0_;
  using Scores::key_count_;
  using Scores::kWidth;
  using Scores::query0_;
  using Scores::query_count_;
  using Scores::query_offset;
  using Scores::sequence_;
  using Scores::terms_;
  using V = Vec<T>;

 public:
  using Element = T;
  static constexpr std::int64_t kQueries = kQueryBlock;

  explicit BackwardTile(const AttentionBackwardJob& job)
      : Scores(*job.forward),
        grad_out_(job.grads->grad_out),
        query_stride_(round_up(job_.head_dim, kWidth)),
        value_stride_(round_up(job_.value_dim, kWidth)) {}

  void carve(Arena& arena) {
    Scores::carve(arena);
    keys_t_ = arena.take<T>(job_.head_dim * kKeyBlock);
    values_t_ = arena.take<T>(job_.value_dim * kKeyBlock);
    keys_ = arena.take<T>(kKeyBlock * query_stride_);
    values_ = arena.take<T>(kKeyBlock * value_stride_);
    queries_ = arena.take<T>(kQueryBlock * query_stride_);
    grads_ = arena.take<T>(kQueryBlock * value_stride_);
    out_ = arena.take<T>(kQueryBlock * value_stride_);
    weights_ = arena.take<T>(kQueryBlock * kKeyBlock);
    score_grads_ = arena.take<T>(kQueryBlock * kKeyBlock);
    lse_ = arena.take<T>(kQueryBlock);
    delta_ = arena.take<T>(kQueryBlock);
  }

  // What the unit of a block of keys adds up beside it.
  void carve_grads(Arena& arena) {
    key_grads_ = arena.take<T>(kKeyBlock * query_stride_);
    value_grads_ = arena.take<T>(kKeyBlock * value_stride_);
  }

  // The block of keys that the next tiles have in common: `keys` of them from key0 on.
  void start_keys(const AttentionSequence& sequence, std::int64_t kv_head, std::int64_t key0, std::int64_t keys) {
    Scores::start_keys(sequence, key0, keys);
    const auto offset = [&](const HeadTensor& tensor) {
      return tensor.offset(sequence.batch, kv_head) + (sequence.key_begin + key0) * tensor.row;
    };
    key_rows_ = rows_of(keys_, query_stride_, job_.key, job_.dtype, offset(job_.key), keys, job_.head_dim);
    transpose_block(key_rows_, job_.head_dim, terms_.query_scale, keys_t_);
    const Rows<T> values =
        rows_of(values_, value_stride_, job_.value, job_.dtype, offset(job_.value), keys, job_.value_dim);
    transpose_block(values, job_.value_dim, T(1), values_t_);
  }

  // The gradients of the keys and values become zero.
  void start_grads() {
    std::fill_n(key_grads_, key_count_ * query_stride_, T(0));
    std::fill_n(value_grads_, key_count_ * value_stride_, T(0));
  }

  using Scores::start_head;

  // The tile of `queries` queries from query0 on: its limits and its mask. False: no query attends to any key in it.
  bool start_queries(std::int64_t query0, std::int64_t queries) {
    const bool attends = Scores::start_queries(query0, queries);
    find_strips();
    return attends;
  }

  // Computes the weights after dropout, which the values' gradient needs, and the gradients of the scores without the
  // scale. before_cap: with respect to the scores before the soft cap; else after it, which is the mask's gradient.
  void compute(bool before_cap, bool needs_score_grads) {
    load_queries();
    multiply(query_strips_, query_strip_count_,
             {query_rows_.data, query_rows_.stride, 1, keys_t_, kKeyBlock, job_.head_dim, weights_, kKeyBlock, false});
    if (needs_score_grads) {
      multiply(query_strips_, query_strip_count_,
               {grad_rows_.data, grad_rows_.stride, 1, values_t_, kKeyBlock, job_.value_dim, score_grads_, kKeyBlock,
                false});
    }
    this->weigh(0, query_count_, weights_, score_grads_, lse_, delta_, before_cap);
  }

  // value_grads[key] += weights^T . grad_out; missing the factor 1 / (1 - p).
  void add_value_grads() { add_over_queries(weights_, grad_rows_, value_grads_, value_stride_); }

  // key_grads[key] += score_grads^T . queries; missing the scale.
  void add_key_grads() { add_over_queries(score_grads_, query_rows_, key_grads_, query_stride_); }

  // Of all tiles since start_grads: [key][query_stride] and [key][value_stride].
  const T* key_grads() const { return key_grads_; }
  const T* value_grads() const { return value_grads_; }

  // grad_queries[query] = score_grads . keys; missing the scale.
  void query_grads(T* grad_queries) const {
    for (std::int64_t column = 0; column < query_stride_; column += kVecs * kWidth) {
      const std::int64_t vecs = std::min<std::int64_t>(kVecs, (query_stride_ - column) / kWidth);
      for (int i = 0; i < query_strip_count_; ++i) {
        const Strip& strip = query_strips_[i];
        kProductBlocks<T>.of[strip.rows - 1][vecs - 1](
            {score_grads_ + strip.first * kKeyBlock + strip.begin, kKeyBlock, 1,
             key_rows_.data + strip.begin * key_rows_.stride + column, key_rows_.stride, strip.end - strip.begin,
             grad_queries + strip.first * query_stride_ + column, query_stride_, false});
      }
    }
  }

  const T* score_grads() const { return score_grads_; }
  std::int64_t query_stride() const { return query_stride_; }
  std::int64_t value_stride() const { return value_stride_; }
  std::int64_t keys_in_vectors() const { return columns_; }

 private:
  void find_strips() {
    const Band& band = sequence_->band;
    const RowBlocks queries(query_count_);
    query_strip_count_ = static_cast<int>(queries.count);
    for (int i = 0; i < query_strip_count_; ++i) {
      const std::int64_t first = queries.begin(i);
      const std::int64_t last = queries.begin(i + 1);
      const PositionRange range = this->keys_of_rows(first, last);
      query_strips_[i] = {first, last - first, range.begin, range.end};
    }
    const RowBlocks keys(key_count_);
    key_strip_count_ = static_cast<int>(keys.count);
    for (int i = 0; i < key_strip_count_; ++i) {
      const std::int64_t first = keys.begin(i);
      const std::int64_t last = keys.begin(i + 1);
      Strip& strip = key_strips_[i];
      strip = {first, last - first, 0, 0};
      if (key0_ + first >= band.keys) continue;
      // Both ends of the range never fall from one key to the next: the first and the last key bound all.
      const PositionRange front = band.queries_of(key0_ + first);
      const PositionRange back = band.queries_of(std::min(key0_ + last, band.keys) - 1);
      strip.begin = std::clamp<std::int64_t>(std::min(front.begin, back.begin) - query0_, 0, query_count_);
      strip.end = std::clamp<std::int64_t>(std::max(front.end, back.end) - query0_, strip.begin, query_count_);
    }
  }

  void load_queries() {
    query_rows_ =
        rows_of(queries_, query_stride_, job_.query, job_.dtype, query_offset(job_.query), query_count_, job_.head_dim);
    grad_rows_ =
        rows_of(grads_, value_stride_, grad_out_, job_.dtype, query_offset(grad_out_), query_count_, job_.value_dim);
    const Rows<T> out =
        rows_of(out_, value_stride_, job_.out, job_.dtype, query_offset(job_.out), query_count_, job_.value_dim);
    const T* lse = static_cast<const T*>(job_.lse.data) + query_offset(job_.lse);
    for (std::int64_t row = 0; row < query_count_; ++row) lse_[row] = lse_in_base2(lse[row * job_.lse.row]);
    store_deltas(grad_rows_.data, grad_rows_.stride, out.data, out.stride, query_count_, value_stride_, score_grads_,
                 delta_);
  }

  // to[column][key] = factor * rows[key][column] for the keys of the block, zero in the rest of the last vector.
  void transpose_block(const Rows<T>& rows, std::int64_t columns, T factor, T* to) const {
    for_each_column<T>(rows.data, rows.stride, 1, key_count_, columns, [&](std::int64_t column, std::int64_t key, V x) {
      (x * V(factor)).store(to + column * kKeyBlock + key);
    });
  }

  // The product's rows [strip], in the vectors that its part of the keys touches.
  void multiply(const Strip* strips, int count, const Product<T>& product) const {
    const std::int64_t vectors = columns_ / kWidth;
    for (std::int64_t panel = 0; panel < vectors; panel += kVecs) {
      for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const std::int64_t from = std::max(panel, strip.begin / kWidth);
        const std::int64_t to = std::min({panel + kVecs, (strip.end + kWidth - 1) / kWidth, vectors});
        if (from >= to || strip.begin == strip.end) continue;
        Product<T> part = product;
        part.a += strip.first * product.a_row;
        part.b += from * kWidth;
        part.c += strip.first * product.c_stride + from * kWidth;
        kProductBlocks<T>.of[strip.rows - 1][to - from - 1](part);
      }
    }
  }

  void add_over_queries(const T* tile, const Rows<T>& rows, T* sums, std::int64_t stride) const {
    for (std::int64_t column = 0; column < stride; column += kVecs * kWidth) {
      const std::int64_t vecs = std::min<std::int64_t>(kVecs, (stride - column) / kWidth);
      for (int i = 0; i < key_strip_count_; ++i) {
        const Strip& strip = key_strips_[i];
        if (strip.begin == strip.end) continue;
        kProductBlocks<T>.of[strip.rows - 1][vecs - 1](
            {tile + strip.begin * kKeyBlock + strip.first, 1, kKeyBlock, rows.data + strip.begin * rows.stride + column,
             rows.stride, strip.end - strip.begin, sums + strip.first * stride + column, stride, true});
      }
    }
  }

  const HeadTensor& grad_out_;
  const std::int64_t query_stride_;  // of rows in scratch: whole vectors
  const std::int64_t value_stride_;

  Strip query_strips_[kQueryStrips];
  Strip key_strips_[kKeyStrips];
  int query_strip_count_ = 0;
  int key_strip_count_ = 0;

  Rows<T> key_rows_{};
  Rows<T> query_rows_{};
  Rows<T> grad_rows_{};

  T* keys_t_;    // [head dim][key], scaled
  T* values_t_;  // [value dim][key]
  T* keys_;      // copies, for arrays that the products cannot read directly
  T* values_;
  T* queries_;
  T* grads_;
  T* out_;
  T* weights_;      // [query][key]: the scores first
  T* score_grads_;  // [query][key]: the weights' gradients first
  T* lse_;          // [query], in base 2
  T* delta_;        // [query]: grad_out . out, by which the softmax shifts the gradients
  T* key_grads_;    // [key][query_stride_]
  T* value_grads_;  // [key][value_stride_]
};

// Runs one unit in the arithmetic of the job's dtype.
template <template <class> class Unit>
void run_unit(const AttentionBackwardJob& job, std::int64_t unit) {
  if (job.forward->dtype == DType::float64) {
    Unit<BackwardTile<double>>(job).run(unit);
  } else {
    Unit<BackwardTile<float>>(job).run(unit);
  }
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
