// A tile of the backward pass: a block of keys by a block of queries. The weights are computed again from the
// log-sum-exp, then the gradients of the scores from the weights. Both are stored as [query][key].
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/kernels/attention/gemm.h"
#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/tiles.h"
#include "math/attention/dropout.h"
#include "math/attention/score.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// One Philox call in each lane gives a row of a tile its dropout.
inline constexpr int kKeyBlock = std::max(64, kDropoutGroup* Vec<std::uint32_t>::kWidth);

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
class BackwardTile {
  using V = Vec<T>;
  using W = Vec<std::uint32_t>;
  static constexpr std::int64_t kWidth = V::kWidth;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  BackwardTile(const AttentionJob& job, const HeadTensor& grad_out)
      : job_(job),
        grad_out_(grad_out),
        query_stride_(round_up(job.head_dim, kWidth)),
        value_stride_(round_up(job.value_dim, kWidth)),
        terms_(job.scale, job.softcap, 0) {}

  void carve(Arena& arena) {
    keys_t_ = arena.take<T>(job_.head_dim * kKeyBlock);
    values_t_ = arena.take<T>(job_.value_dim * kKeyBlock);
    keys_ = arena.take<T>(kKeyBlock * query_stride_);
    values_ = arena.take<T>(kKeyBlock * value_stride_);
    queries_ = arena.take<T>(kQueryBlock * query_stride_);
    grads_ = arena.take<T>(kQueryBlock * value_stride_);
    out_ = arena.take<T>(kQueryBlock * value_stride_);
    weights_ = arena.take<T>(kQueryBlock * kKeyBlock);
    score_grads_ = arena.take<T>(kQueryBlock * kKeyBlock);
    mask_ = arena.take<T>(job_.mask.data != nullptr ? kQueryBlock * kKeyBlock : 0);
    lse_ = arena.take<T>(kQueryBlock);
    delta_ = arena.take<T>(kQueryBlock);
    for (auto& part : drop_keys_) part = arena.take<std::uint32_t>(kKeyBlock / kDropoutGroup + W::kWidth);
  }

  // The block of keys that the next tiles have in common: `keys` of them from key0 on.
  void start_keys(const AttentionSequence& sequence, std::int64_t kv_head, std::int64_t key0, std::int64_t keys) {
    sequence_ = &sequence;
    key0_ = key0;
    key_count_ = keys;
    vectors_ = (keys + kWidth - 1) / kWidth;
    const auto offset = [&](const HeadTensor& tensor) {
      return tensor.offset(sequence.batch, kv_head) + (sequence.key_begin + key0) * tensor.row;
    };
    key_rows_ = rows_of(keys_, query_stride_, job_.key, job_.dtype, offset(job_.key), keys, job_.head_dim);
    transpose_block(key_rows_, job_.head_dim, terms_.query_scale, keys_t_);
    const Rows<T> values =
        rows_of(values_, value_stride_, job_.value, job_.dtype, offset(job_.value), keys, job_.value_dim);
    transpose_block(values, job_.value_dim, T(1), values_t_);
  }

  // The head whose queries the next tiles take.
  void start_head(std::int64_t head) {
    head_ = head;
    terms_ = ScoreTerms<T>(job_.scale, job_.softcap, slope_of(job_, *sequence_, head));
    mask_is_filled_ = false;
    if (!job_.dropout.drops()) return;
    const AttentionDropout dropout = head_dropout();
    for (std::int64_t group = 0; group < kKeyBlock / kDropoutGroup; group += W::kWidth) {
      const DropoutKeys<W> keys = dropout.keys(W::iota(static_cast<std::uint32_t>(key0_ / kDropoutGroup + group)));
      keys.round2.store(drop_keys_[0] + group);
      keys.round3_word0.store(drop_keys_[1] + group);
      keys.round3_word2.store(drop_keys_[2] + group);
      keys.round3_word3.store(drop_keys_[3] + group);
    }
  }

  // The tile of `queries` queries from query0 on: its limits and its mask. False: no query attends to any key in it.
  bool start_queries(std::int64_t query0, std::int64_t queries) {
    query0_ = query0;
    query_count_ = queries;
    find_limits();
    return !empty_ && fill_mask();
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
    const bool drops = job_.dropout.drops();
    if (job_.mask.data != nullptr || terms_.changes()) {
      drops ? weigh<true, true>(before_cap) : weigh<true, false>(before_cap);
    } else {
      drops ? weigh<false, true>(before_cap) : weigh<false, false>(before_cap);
    }
  }

  // grad_values[key] += weights^T . grad_out; missing the factor 1 / (1 - p).
  void add_value_grads(T* grad_values) const { add_over_queries(weights_, grad_rows_, grad_values, value_stride_); }

  // grad_keys[key] += score_grads^T . queries; missing the scale.
  void add_key_grads(T* grad_keys) const { add_over_queries(score_grads_, query_rows_, grad_keys, query_stride_); }

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
  std::int64_t keys_in_vectors() const { return vectors_ * kWidth; }

 private:
  AttentionDropout head_dropout() const {
    return AttentionDropout(job_.dropout, sequence_->batch * job_.heads + head_);
  }

  std::int64_t query_offset(const HeadTensor& tensor) const {
    return tensor.offset(sequence_->batch, head_) + (sequence_->query_begin + query0_) * tensor.row;
  }

  void find_limits() {
    const Band& band = sequence_->band;
    empty_ = true;
    for (std::int64_t row = 0; row < query_count_; ++row) {
      const PositionRange range = band.keys_of(query0_ + row);
      begin_[row] = std::clamp<std::int64_t>(range.begin - key0_, 0, key_count_);
      end_[row] = std::clamp<std::int64_t>(range.end - key0_, begin_[row], key_count_);
      if (begin_[row] < end_[row]) empty_ = false;
    }
    const RowBlocks queries(query_count_);
    query_strip_count_ = static_cast<int>(queries.count);
    for (int i = 0; i < query_strip_count_; ++i) {
      const std::int64_t first = queries.begin(i);
      const std::int64_t last = queries.begin(i + 1);
      Strip& strip = query_strips_[i];
      strip = {first, last - first, key_count_, 0};
      for (std::int64_t row = first; row < last; ++row) {
        if (begin_[row] == end_[row]) continue;
        strip.begin = std::min(strip.begin, begin_[row]);
        strip.end = std::max(strip.end, end_[row]);
      }
      strip.end = std::max(strip.begin, strip.end);
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

  // mask_ becomes additive, -inf for false. It has one row for all queries where the mask has no query dimension.
  bool fill_mask() {
    if (job_.mask.data == nullptr) return true;
    mask_stride_ = job_.mask.row == 0 ? 0 : kKeyBlock;
    if (mask_is_filled_) return mask_attends_;
    mask_is_filled_ = mask_stride_ == 0;
    const std::int64_t rows = mask_stride_ == 0 ? 1 : query_count_;
    const std::int64_t offset = query_offset(job_.mask) + (sequence_->key_begin + key0_) * job_.mask.column;
    if (job_.mask_dtype == DType::boolean) {
      const auto* from = static_cast<const std::uint8_t*>(job_.mask.data) + offset;
      for (std::int64_t row = 0; row < rows; ++row) {
        fill_mask_row(from + row * job_.mask.row, mask_ + row * kKeyBlock);
      }
    } else {
      copy_rows(mask_, kKeyBlock, job_.mask, job_.mask_dtype, offset, rows, key_count_);
    }
    mask_attends_ = attends(rows);
    return mask_attends_;
  }

  void fill_mask_row(const std::uint8_t* from, T* to) const {
    const std::int64_t column = job_.mask.column;
    if (column == 1) {
      for (std::int64_t key = 0; key < key_count_; ++key) to[key] = from[key] != 0 ? T(0) : -kInfinity;
    } else {
      for (std::int64_t key = 0; key < key_count_; ++key) to[key] = from[key * column] != 0 ? T(0) : -kInfinity;
    }
    for (std::int64_t key = key_count_; key < vectors_ * kWidth; ++key) to[key] = 0;
  }

  bool attends(std::int64_t rows) const {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t key = 0; key < key_count_; ++key) {
        if (mask_[row * kKeyBlock + key] != -kInfinity) return true;
      }
    }
    return false;
  }

  void load_queries() {
    query_rows_ =
        rows_of(queries_, query_stride_, job_.query, job_.dtype, query_offset(job_.query), query_count_, job_.head_dim);
    grad_rows_ =
        rows_of(grads_, value_stride_, grad_out_, job_.dtype, query_offset(grad_out_), query_count_, job_.value_dim);
    const Rows<T> out =
        rows_of(out_, value_stride_, job_.out, job_.dtype, query_offset(job_.out), query_count_, job_.value_dim);
    const T* lse = static_cast<const T*>(job_.lse.data) + query_offset(job_.lse);
    for (std::int64_t row = 0; row < query_count_; ++row) {
      const T* grad = grad_rows_.data + row * grad_rows_.stride;
      const T* values = out.data + row * out.stride;
      V sum(T(0));
      for (std::int64_t c = 0; c < value_stride_; c += kWidth) sum = fma(V::load(grad + c), V::load(values + c), sum);
      sum.store(score_grads_ + row * kWidth);
      const T l = lse[row * job_.lse.row];
      // Rows that attend to nothing: every weight is then 2^-inf = 0.
      lse_[row] = l == -kInfinity ? kInfinity : static_cast<T>(static_cast<double>(l) * kLog2E);
    }
    sum_lanes();
  }

  // delta_ = the sums of the rows of kWidth that score_grads_ holds. They are transposed first, so that vectors are
  // added.
  void sum_lanes() {
    for (std::int64_t row = 0; row < query_count_; row += kWidth) {
      V lane[kWidth];
      for (std::int64_t i = 0; i < kWidth; ++i) lane[i] = V::load(score_grads_ + (row + i) * kWidth);
      transpose(lane);
      V sum = lane[0];
      for (std::int64_t i = 1; i < kWidth; ++i) sum = sum + lane[i];
      sum.store(delta_ + row);
    }
  }

  // to[column][key] = factor * rows[key][column] for the keys of the block, zero in the rest of the last vector.
  void transpose_block(const Rows<T>& rows, std::int64_t columns, T factor, T* to) const {
    for_each_column<T>(rows.data, rows.stride, 1, key_count_, columns, [&](std::int64_t column, std::int64_t key, V x) {
      (x * V(factor)).store(to + column * kKeyBlock + key);
    });
  }

  // The product's rows [strip], in the vectors that its part of the keys touches.
  void multiply(const Strip* strips, int count, const Product<T>& product) const {
    for (std::int64_t panel = 0; panel < vectors_; panel += kVecs) {
      for (int i = 0; i < count; ++i) {
        const Strip& strip = strips[i];
        const std::int64_t from = std::max(panel, strip.begin / kWidth);
        const std::int64_t to = std::min({panel + kVecs, (strip.end + kWidth - 1) / kWidth, vectors_});
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

  template <bool kChanged, bool kDrops>
  __attribute__((noinline)) void weigh(bool before_cap) {
    const AttentionDropout dropout = head_dropout();
    T lanes[kWidth];
    for (std::int64_t i = 0; i < kWidth; ++i) lanes[i] = static_cast<T>(i);
    const V lane = V::load(lanes);
    const V keep_scale(static_cast<T>(job_.dropout.scale()));
    const auto threshold = static_cast<std::uint16_t>(job_.dropout.threshold);
    for (std::int64_t row = 0; row < query_count_; ++row) {
      T* const weights = weights_ + row * kKeyBlock;
      T* const grads = score_grads_ + row * kKeyBlock;
      const std::int64_t begin = begin_[row];
      const std::int64_t end = end_[row];
      if (begin == end) {
        std::fill_n(weights, vectors_ * kWidth, T(0));
        std::fill_n(grads, vectors_ * kWidth, T(0));
        continue;
      }
      alignas(64) std::uint16_t numbers[kKeyBlock];
      if constexpr (kDrops) fill_numbers(dropout, query0_ + row, begin, end, numbers);
      const V lse(lse_[row]);
      const V delta(delta_[row]);
      const T* mask = kChanged && job_.mask.data != nullptr ? mask_ + row * mask_stride_ : nullptr;
      const V position(static_cast<T>(query0_ + row + sequence_->band.shift - key0_));
      const std::int64_t first = begin / kWidth * kWidth;
      const std::int64_t last = round_up(end, kWidth);
      for (std::int64_t key = first; key < last; key += kWidth) {
        V score = V::load(weights + key);
        V capped(T(0));
        if constexpr (kChanged) {
          if (terms_.cap != 0) {
            capped = terms_.capped_tanh(score);
            score = capped * V(terms_.cap_base2);
          }
          score = fma(V(-terms_.slope_base2), abs(position - (V(static_cast<T>(key)) + lane)), score);
          if (mask != nullptr) score = add_mask<T>(score, V::load(mask + key));
        }
        V weight = exp2<T>(score - lse);
        V grad = V::load(grads + key);
        if constexpr (kDrops) {
          grad = weight * fma(keep(grad, numbers + key, threshold), keep_scale, -delta);
          weight = keep(weight, numbers + key, threshold);
        } else {
          grad = weight * (grad - delta);
        }
        if constexpr (kChanged) {
          if (before_cap) grad = grad * fma(-capped, capped, V(T(1)));
        }
        weight.store(weights + key);
        grad.store(grads + key);
      }
      const auto clear = [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t key = from; key < to; ++key) weights[key] = grads[key] = 0;
      };
      clear(0, begin);
      clear(end, vectors_ * kWidth);
    }
  }

  // The dropout numbers of a query for keys [begin, end) of the block.
  void fill_numbers(const AttentionDropout& dropout, std::int64_t query, std::int64_t begin, std::int64_t end,
                    std::uint16_t* numbers) const {
    constexpr std::int64_t kKeys = kDropoutGroup * W::kWidth;
    const DropoutQuery<std::uint32_t> part = dropout.query(static_cast<std::uint32_t>(query));
    const DropoutQuery<W> spread{W(part.high), W(part.low)};
    for (std::int64_t key = begin / kKeys * kKeys; key < end; key += kKeys) {
      const std::int64_t group = key / kDropoutGroup;
      const DropoutKeys<W> keys{W::load(drop_keys_[0] + group), W::load(drop_keys_[1] + group),
                                W::load(drop_keys_[2] + group), W::load(drop_keys_[3] + group)};
      const PhiloxWords<W> words = dropout.words(spread, keys);
      W::store_numbers(numbers + key, words.word[0], words.word[1], words.word[2], words.word[3]);
    }
  }

  const AttentionJob& job_;
  const HeadTensor& grad_out_;
  const std::int64_t query_stride_;  // of rows in scratch: whole vectors
  const std::int64_t value_stride_;
  ScoreTerms<T> terms_;

  const AttentionSequence* sequence_ = nullptr;
  std::int64_t head_ = 0;
  std::int64_t key0_ = 0;
  std::int64_t key_count_ = 0;
  std::int64_t vectors_ = 0;
  std::int64_t query0_ = 0;
  std::int64_t query_count_ = 0;
  bool empty_ = true;

  std::int64_t begin_[kQueryBlock];  // the keys of the block that each query may look at
  std::int64_t end_[kQueryBlock];
  Strip query_strips_[kQueryStrips];
  Strip key_strips_[kKeyStrips];
  int query_strip_count_ = 0;
  int key_strip_count_ = 0;

  std::int64_t mask_stride_ = 0;
  bool mask_is_filled_ = false;  // with one row for all queries of the head
  bool mask_attends_ = false;

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
  T* weights_;                   // [query][key]: the scores first
  T* score_grads_;               // [query][key]: the weights' gradients first
  T* mask_;                      // [query][key], or one row
  T* lse_;                       // [query], in base 2
  T* delta_;                     // [query]: grad_out . out, by which the softmax shifts the gradients
  std::uint32_t* drop_keys_[4];  // [key / 8]: DropoutKeys
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
