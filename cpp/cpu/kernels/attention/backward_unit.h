// The backward pass of attention, in a single pass over the scores. Each unit takes a block of keys, accumulates the
// gradients of its keys and values, and visits the blocks of queries that attend to it. The gradients of queries are
// summed from the last block of keys to the first, for any number of threads: the bits do not depend on the threads,
// and all threads can work on one head. Under a causal mask the last block has the fewest queries, those that earlier
// blocks reach last. In this order no thread waits for them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels/attention/blocks.h"
#include "cpu/kernels/attention/score_tile.h"
#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/unit.h"
#include "threads/turns.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class Tile>
class BackwardUnit : AttentionUnit<Tile> {
  using AttentionUnit<Tile>::job_;
  using AttentionUnit<Tile>::forward_;
  using AttentionUnit<Tile>::grads_;
  using AttentionUnit<Tile>::tile_;
  using T = typename Tile::Element;
  using V = Vec<T>;
  static constexpr std::int64_t kWidth = V::kWidth;

 public:
  explicit BackwardUnit(const AttentionBackwardJob& job) : AttentionUnit<Tile>(job) {
    carve_scratch([this](Arena& arena) { carve(arena); });
  }

  void run(std::int64_t unit) {
    const std::int64_t s = sequence_of(job_.first_unit, forward_.num_sequences, unit);
    sequence_ = &forward_.sequences[s];
    blocks_ = key_blocks(sequence_->keys);
    block_ = blocks_ - 1 - (unit - job_.first_unit[s]) % blocks_;
    const std::int64_t kv_head = (unit - job_.first_unit[s]) / blocks_;
    key0_ = block_ * kKeyBlock;
    keys_ = std::min<std::int64_t>(kKeyBlock, sequence_->keys - key0_);
    tile_.start_keys(*sequence_, kv_head, key0_, keys_);
    tile_.start_grads();

    const std::int64_t group = s * forward_.kv_heads + kv_head;
    if (job_.sums != nullptr && group >= job_.slots) {
      wait_for_turn(job_.finished[group - job_.slots], units_of_group(group - job_.slots));
    }
    const std::int64_t a_group = forward_.heads / forward_.kv_heads;
    for (std::int64_t i = 0; i < a_group; ++i) run_head(kv_head * a_group + i, group, i);
    if (job_.sums != nullptr) pass_turn(job_.finished[group]);

    if (grads_.grad_key.data != nullptr) {
      store_rows(grads_.grad_key, kv_head, tile_.key_grads(), tile_.query_stride(), static_cast<T>(forward_.scale),
                 forward_.head_dim);
    }
    if (grads_.grad_value.data != nullptr) {
      store_rows(grads_.grad_value, kv_head, tile_.value_grads(), tile_.value_stride(),
                 static_cast<T>(forward_.dropout.scale()), forward_.value_dim);
    }
  }

 private:
  void carve(Arena& arena) {
    tile_.carve(arena);
    tile_.carve_grads(arena);
    query_grads_ = arena.take<T>(Tile::kQueries * tile_.query_stride());
  }

  static std::int64_t key_blocks(std::int64_t keys) { return attention_blocks(keys, kKeyBlock); }

  std::uint32_t units_of_group(std::int64_t group) const {
    return static_cast<std::uint32_t>(key_blocks(forward_.sequences[group / forward_.kv_heads].keys));
  }

  // The blocks of keys that queries [first, last) attend to. At least one, which writes zeros where they attend to
  // nothing.
  PositionRange blocks_of(std::int64_t first, std::int64_t last) const {
    const PositionRange front = sequence_->band.keys_of(first);
    const PositionRange back = sequence_->band.keys_of(last - 1);
    const std::int64_t begin = std::min(front.begin, back.begin) / kKeyBlock;
    const std::int64_t end = (std::max(front.end, back.end) + kKeyBlock - 1) / kKeyBlock;
    const std::int64_t from = std::min(begin, blocks_ - 1);
    return {from, std::clamp(end, from + 1, blocks_)};
  }

  void run_head(std::int64_t head, std::int64_t group, std::int64_t in_group) {
    const bool needs_queries = grads_.grad_query.data != nullptr;
    const bool needs_scores = needs_queries || grads_.grad_key.data != nullptr;
    tile_.start_head(head);
    const std::int64_t query_blocks = round_up(sequence_->queries, kQueryBlock) / kQueryBlock;
    for (std::int64_t query0 = 0; query0 < sequence_->queries; query0 += Tile::kQueries) {
      const std::int64_t queries = std::min<std::int64_t>(Tile::kQueries, sequence_->queries - query0);
      const PositionRange blocks = blocks_of(query0, query0 + queries);
      if (block_ < blocks.begin || block_ >= blocks.end) continue;
      const bool attends = tile_.start_queries(query0, queries);
      if (attends) {
        tile_.compute(true, needs_scores);
        if (grads_.grad_value.data != nullptr) tile_.add_value_grads();
        if (grads_.grad_key.data != nullptr) tile_.add_key_grads();
      }
      if (!needs_queries) continue;
      if (attends) tile_.query_grads(query_grads_);
      std::uint32_t& turn = job_.turns[sequence_->first_block + head * query_blocks + query0 / kQueryBlock];
      wait_for_turn(turn, static_cast<std::uint32_t>(blocks.end - 1 - block_));
      add_query_grads(head, query0, queries, attends, block_ + 1 == blocks.end, block_ == blocks.begin,
                      sums_of(group, in_group, query0));
      pass_turn(turn);
    }
  }

  // Where the gradients of a block of queries are summed for 16-bit storage; nullptr: in the gradient's own memory.
  T* sums_of(std::int64_t group, std::int64_t in_group, std::int64_t query0) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (job_.sums == nullptr) return nullptr;
      return job_.sums + group % job_.slots * job_.slot_size +
             (in_group * sequence_->queries + query0) * tile_.query_stride();
    } else {
      return nullptr;
    }
  }

  // Adds query_grads_, or nothing if no query `attends`, to the sum of the blocks before: zero at first.
  void add_query_grads(std::int64_t head, std::int64_t query0, std::int64_t queries, bool attends, bool first,
                       bool last, T* sums) {
    const HeadTensor& tensor = grads_.grad_query;
    const std::int64_t offset = tensor.offset(sequence_->batch, head) + (sequence_->query_begin + query0) * tensor.row;
    if (!attends && first) std::fill_n(query_grads_, queries * tile_.query_stride(), T(0));
    if (attends || first) {
      const T scale = static_cast<T>(forward_.scale);
      for (std::int64_t row = 0; row < queries; ++row) {
        const T* from = query_grads_ + row * tile_.query_stride();
        if (sums != nullptr) {
          add_row(sums + row * tile_.query_stride(), 1, from, scale, first);
        } else {
          add_row(static_cast<T*>(tensor.data) + offset + row * tensor.row, tensor.column, from, scale, first);
        }
      }
    }
    if (sums == nullptr || !last) return;
    for (std::int64_t row = 0; row < queries; ++row) {
      store_row(tensor, forward_.dtype, offset + row * tensor.row, sums + row * tile_.query_stride(), T(1),
                forward_.head_dim);
    }
  }

  void add_row(T* to, std::int64_t stride, const T* from, T scale, bool first) const {
    const std::int64_t count = forward_.head_dim;
    std::int64_t i = 0;
    if (stride == 1) {
      for (; i + kWidth <= count; i += kWidth) {
        const V sum = first ? V(T(0)) : V::load(to + i);
        fma(V(scale), V::load(from + i), sum).store(to + i);
      }
    }
    for (; i < count; ++i) to[i * stride] = fma(scale, from[i], first ? T(0) : to[i * stride]);
  }

  void store_rows(const HeadTensor& tensor, std::int64_t kv_head, const T* from, std::int64_t from_stride, T factor,
                  std::int64_t columns) const {
    const std::int64_t offset = tensor.offset(sequence_->batch, kv_head) + (sequence_->key_begin + key0_) * tensor.row;
    for (std::int64_t row = 0; row < keys_; ++row) {
      store_row(tensor, forward_.dtype, offset + row * tensor.row, from + row * from_stride, factor, columns);
    }
  }

  const AttentionSequence* sequence_ = nullptr;
  std::int64_t blocks_ = 0;
  std::int64_t block_ = 0;
  std::int64_t key0_ = 0;
  std::int64_t keys_ = 0;

  T* query_grads_;  // [query][query_stride]: what the tile adds
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
