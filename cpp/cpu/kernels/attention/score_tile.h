// What is done to a tile of scores, stored as [query][key], whatever made the products: the keys that each query may
// look at, the mask, the terms of the score, dropout, and in the backward pass the weights and their gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/tiles.h"
#include "math/attention/dropout.h"
#include "math/attention/score.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// One Philox call in each lane gives a row of a tile its dropout.
inline constexpr int kKeyBlock = std::max(64, kDropoutGroup* Vec<std::uint32_t>::kWidth);

// to[row] = the kWidth numbers of lanes[row], combined in order. They are transposed first, so that vectors are
// combined.
template <class T, class Combine>
void combine_lanes(const T* lanes, std::int64_t rows, T* to, const Combine& combine) {
  using V = Vec<T>;
  constexpr int kWidth = V::kWidth;
  for (std::int64_t row = 0; row < rows; row += kWidth) {
    V lane[kWidth];
    for (int i = 0; i < kWidth; ++i) lane[i] = V::load(lanes + (row + i) * kWidth);
    transpose(lane);
    V all = lane[0];
    for (int i = 1; i < kWidth; ++i) all = combine(all, lane[i]);
    all.store(to + row);
  }
}

// Lanes that hold 0, 1, 2 and so on.
template <class T>
FUSESTEP_HD Vec<T> counting_lanes() {
  T lanes[Vec<T>::kWidth];
  for (int i = 0; i < Vec<T>::kWidth; ++i) lanes[i] = static_cast<T>(i);
  return Vec<T>::load(lanes);
}

// kQueries: the most rows. kPadding: columns are a multiple of it. kPrescaled: the queries were multiplied with the
// scale before the product, else the product is.
template <class T, int kQueries, int kPadding, bool kPrescaled>
class ScoreTile {
 protected:
  using V = Vec<T>;
  using W = Vec<std::uint32_t>;
  static constexpr std::int64_t kWidth = V::kWidth;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  explicit ScoreTile(const AttentionJob& job) : job_(job), terms_(job.scale, job.softcap, 0) {}

  void carve(Arena& arena) {
    mask_ = arena.take<T>(job_.mask.data != nullptr ? kQueries * kKeyBlock : 0);
    for (auto& part : drop_keys_) part = arena.take<std::uint32_t>(kKeyBlock / kDropoutGroup + W::kWidth);
  }

  // The block of keys that the next tiles have in common: `keys` of them from key0 on.
  void start_keys(const AttentionSequence& sequence, std::int64_t key0, std::int64_t keys) {
    sequence_ = &sequence;
    key0_ = key0;
    key_count_ = keys;
    columns_ = round_up(keys, kPadding);
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
    bool empty = true;
    for (std::int64_t row = 0; row < query_count_; ++row) {
      const PositionRange range = sequence_->band.keys_of(query0_ + row);
      begin_[row] = std::clamp<std::int64_t>(range.begin - key0_, 0, key_count_);
      end_[row] = std::clamp<std::int64_t>(range.end - key0_, begin_[row], key_count_);
      if (begin_[row] < end_[row]) empty = false;
    }
    return !empty && fill_mask();
  }

  AttentionDropout head_dropout() const {
    return AttentionDropout(job_.dropout, sequence_->batch * job_.heads + head_);
  }

  std::int64_t query_offset(const HeadTensor& tensor) const {
    return tensor.offset(sequence_->batch, head_) + (sequence_->query_begin + query0_) * tensor.row;
  }

  bool changes_scores() const { return job_.mask.data != nullptr || terms_.changes(); }

  // The keys that any of rows [first, last) may look at: an empty range where there are none.
  PositionRange keys_of_rows(std::int64_t first, std::int64_t last) const {
    PositionRange range{key_count_, 0};
    for (std::int64_t row = first; row < last; ++row) {
      if (begin_[row] == end_[row]) continue;
      range.begin = std::min(range.begin, begin_[row]);
      range.end = std::max(range.end, end_[row]);
    }
    return {range.begin, std::max(range.begin, range.end)};
  }

  // What the formulas of a row read besides its scores.
  struct RowTerms {
    const T* mask;  // nullptr: none
    V position;     // of the key on the diagonal, counted from key0
  };
  RowTerms terms_of(std::int64_t row) const {
    return {job_.mask.data != nullptr ? mask_ + row * mask_stride_ : nullptr,
            V(static_cast<T>(query0_ + row + sequence_->band.shift - key0_))};
  }

  // The score in base 2 from a product of query and key. `lane`: counting_lanes. capped: of a soft cap, else unchanged.
  template <bool kChanged>
  FUSESTEP_HD V score(V product, const RowTerms& row, std::int64_t key, V lane, V& capped) const {
    V s = product;
    if constexpr (!kPrescaled) s = s * V(terms_.query_scale);
    if constexpr (kChanged) {
      if (terms_.cap != 0) {
        capped = terms_.capped_tanh(s);
        s = capped * V(terms_.cap_base2);
      }
      s = fma(V(-terms_.slope_base2), abs(row.position - (V(static_cast<T>(key)) + lane)), s);
      if (row.mask != nullptr) s = add_mask<T>(s, V::load(row.mask + key));
    }
    return s;
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

  // Of rows [first, last): products of queries and keys become the weights after dropout, and those of grad_out and
  // values the gradients of the scores without the scale. Both begin with row `first`. lse: in base 2, inf for rows
  // that attend to nothing. delta: grad_out . out, by which the softmax shifts the gradients. before_cap: the gradients
  // are with respect to the scores before the soft cap; else after it, which is the mask's gradient.
  void weigh(std::int64_t first, std::int64_t last, T* weights, T* grads, const T* lse, const T* delta,
             bool before_cap) const {
    const bool drops = job_.dropout.drops();
    if (changes_scores()) {
      drops ? weigh_rows<true, true>(first, last, weights, grads, lse, delta, before_cap)
            : weigh_rows<true, false>(first, last, weights, grads, lse, delta, before_cap);
    } else {
      drops ? weigh_rows<false, true>(first, last, weights, grads, lse, delta, before_cap)
            : weigh_rows<false, false>(first, last, weights, grads, lse, delta, before_cap);
    }
  }

  const AttentionJob& job_;
  ScoreTerms<T> terms_;

  const AttentionSequence* sequence_ = nullptr;
  std::int64_t head_ = 0;
  std::int64_t key0_ = 0;
  std::int64_t key_count_ = 0;
  std::int64_t columns_ = 0;
  std::int64_t query0_ = 0;
  std::int64_t query_count_ = 0;

  std::int64_t begin_[kQueries];  // the keys of the block that each query may look at
  std::int64_t end_[kQueries];

 private:
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
    for (std::int64_t key = key_count_; key < columns_; ++key) to[key] = 0;
  }

  bool attends(std::int64_t rows) const {
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t key = 0; key < key_count_; ++key) {
        if (mask_[row * kKeyBlock + key] != -kInfinity) return true;
      }
    }
    return false;
  }

  template <bool kChanged, bool kDrops>
  __attribute__((noinline)) void weigh_rows(std::int64_t first_row, std::int64_t last_row, T* all_weights, T* all_grads,
                                            const T* lse_of, const T* delta_of, bool before_cap) const {
    const AttentionDropout dropout = head_dropout();
    const V lane = counting_lanes<T>();
    const V keep_scale(static_cast<T>(job_.dropout.scale()));
    const auto threshold = static_cast<std::uint16_t>(job_.dropout.threshold);
    for (std::int64_t row = first_row; row < last_row; ++row) {
      T* const weights = all_weights + (row - first_row) * kKeyBlock;
      T* const grads = all_grads + (row - first_row) * kKeyBlock;
      const std::int64_t begin = begin_[row];
      const std::int64_t end = end_[row];
      if (begin == end) {
        std::fill_n(weights, columns_, T(0));
        std::fill_n(grads, columns_, T(0));
        continue;
      }
      alignas(64) std::uint16_t numbers[kKeyBlock];
      if constexpr (kDrops) fill_numbers(dropout, query0_ + row, begin, end, numbers);
      const V lse(lse_of[row]);
      const V delta(delta_of[row]);
      const RowTerms row_terms = terms_of(row);
      const std::int64_t first = begin / kWidth * kWidth;
      const std::int64_t last = round_up(end, kWidth);
      for (std::int64_t key = first; key < last; key += kWidth) {
        V capped(T(0));
        V weight = exp2<T>(score<kChanged>(V::load(weights + key), row_terms, key, lane, capped) - lse);
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
      clear(end, columns_);
    }
  }

  std::int64_t mask_stride_ = 0;
  bool mask_is_filled_ = false;  // with one row for all queries of the head
  bool mask_attends_ = false;

  T* mask_;                      // [query][key], or one row
  std::uint32_t* drop_keys_[4];  // [key / 8]: DropoutKeys
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
