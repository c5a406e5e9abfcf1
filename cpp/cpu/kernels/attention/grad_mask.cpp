// The gradient of an additive mask: that of the scores, summed up over what the mask was broadcast over, in a fixed
// order. This is a separate pass over tiles of the mask. In the pass over the keys, the heads and batches that share an
// element would have to take turns.
#include <algorithm>

#include "cpu/kernels/attention/backward_tile.h"
#include "cpu/kernels/attention/blocks.h"
#include "cpu/kernels/attention/unit.h"
#include "cpu/kernels/kernels.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// The positions of a dimension that a unit visits: its own one, or all.
FUSESTEP_HD PositionRange range_of(bool own, std::int64_t position, std::int64_t count) {
  return own ? PositionRange{position, position + 1} : PositionRange{0, count};
}

template <class Tile>
class GradMaskUnit : AttentionUnit<Tile> {
  using AttentionUnit<Tile>::job_;
  using AttentionUnit<Tile>::forward_;
  using AttentionUnit<Tile>::grads_;
  using AttentionUnit<Tile>::tile_;
  using T = typename Tile::Element;
  using V = Vec<T>;
  static constexpr std::int64_t kWidth = V::kWidth;

 public:
  explicit GradMaskUnit(const AttentionBackwardJob& job) : AttentionUnit<Tile>(job) {
    carve_scratch([this](Arena& arena) { carve(arena); });
  }

  void run(std::int64_t unit) {
    std::int64_t s = 0;
    if (grads_.mask_has_batch) {
      s = sequence_of(job_.first_mask_unit, forward_.num_sequences, unit);
      unit -= job_.first_mask_unit[s];
    }
    const AttentionSequence& sequence = forward_.sequences[s];
    const GradMaskTiles tiles(grads_, sequence, kKeyBlock);
    const std::int64_t key_tile = unit % tiles.keys;
    const std::int64_t query_tile = unit / tiles.keys % tiles.queries;
    const std::int64_t head = unit / tiles.keys / tiles.queries;

    std::fill_n(sums_, kQueryBlock * kKeyBlock, T(0));
    const PositionRange sequences = range_of(grads_.mask_has_batch, s, forward_.num_sequences);
    for (std::int64_t i = sequences.begin; i < sequences.end; ++i) add_sequence(i, head, query_tile, key_tile);
    write(sequence, head, query_tile * kQueryBlock, key_tile * kKeyBlock);
  }

 private:
  void carve(Arena& arena) {
    tile_.carve(arena);
    sums_ = arena.take<T>(kQueryBlock * kKeyBlock);
  }

  void add_sequence(std::int64_t s, std::int64_t own_head, std::int64_t query_tile, std::int64_t key_tile) {
    const AttentionSequence& sequence = forward_.sequences[s];
    const auto blocks = [](std::int64_t count, std::int64_t size) { return (count + size - 1) / size; };
    const PositionRange heads = range_of(grads_.mask_has_head, own_head, forward_.heads);
    const PositionRange query_tiles =
        range_of(grads_.mask_has_query, query_tile, blocks(sequence.queries, kQueryBlock));
    const PositionRange key_tiles = range_of(grads_.mask_has_key, key_tile, blocks(sequence.keys, kKeyBlock));
    for (std::int64_t head = heads.begin; head < heads.end; ++head) {
      for (std::int64_t k = key_tiles.begin; k < key_tiles.end; ++k) {
        const std::int64_t key0 = k * kKeyBlock;
        if (key0 >= sequence.band.keys) break;
        tile_.start_keys(sequence, forward_.kv_head(head), key0,
                         std::min<std::int64_t>(kKeyBlock, sequence.keys - key0));
        tile_.start_head(head);
        for (std::int64_t q = query_tiles.begin; q < query_tiles.end; ++q) {
          const std::int64_t queries = std::min<std::int64_t>(kQueryBlock, sequence.queries - q * kQueryBlock);
          if (!tile_.start_queries(q * kQueryBlock, queries)) continue;
          tile_.compute(false, true);
          add_tile(queries);
        }
      }
    }
  }

  void add_tile(std::int64_t queries) {
    for (std::int64_t row = 0; row < queries; ++row) {
      const T* from = tile_.score_grads() + row * kKeyBlock;
      T* to = sums_ + row * kKeyBlock;
      for (std::int64_t key = 0; key < tile_.keys_in_vectors(); key += kWidth) {
        (V::load(to + key) + V::load(from + key)).store(to + key);
      }
    }
  }

  void write(const AttentionSequence& sequence, std::int64_t head, std::int64_t query0, std::int64_t key0) {
    std::int64_t queries = std::min<std::int64_t>(kQueryBlock, sequence.queries - query0);
    std::int64_t keys = std::min<std::int64_t>(kKeyBlock, sequence.keys - key0);
    if (!grads_.mask_has_query) {
      for (std::int64_t row = 1; row < kQueryBlock; ++row) {
        for (std::int64_t key = 0; key < kKeyBlock; ++key) sums_[key] += sums_[row * kKeyBlock + key];
      }
      queries = 1;
    }
    if (!grads_.mask_has_key) {
      for (std::int64_t row = 0; row < queries; ++row) {
        T* sums = sums_ + row * kKeyBlock;
        for (std::int64_t key = 1; key < kKeyBlock; ++key) sums[0] += sums[key];
      }
      keys = 1;
    }
    const HeadTensor& tensor = grads_.grad_mask;
    const std::int64_t offset = tensor.offset(sequence.batch, head) + (sequence.query_begin + query0) * tensor.row +
                                (sequence.key_begin + key0) * tensor.column;
    for (std::int64_t row = 0; row < queries; ++row) {
      store_row(tensor, grads_.grad_mask_dtype, offset + row * tensor.row, sums_ + row * kKeyBlock, T(1), keys);
    }
  }

  T* sums_;  // [query][key]
};

}  // namespace

void fill_attention_grad_mask(CpuKernels& kernels) { kernels.attention_grad_mask = run_unit<GradMaskUnit>; }

}  // namespace fusestep::FUSESTEP_ISA
