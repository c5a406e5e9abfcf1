// The forward pass of attention on products of bfloat16. Keys and values are packed once for all queries and threads.
// Each block of queries then visits the blocks of keys that its band leaves, kTileBlock rows at a time, and updates the
// softmax after each (online softmax). Scores are stored as [query][key]: a row of weights, rounded, is a row of the
// second product's left factor.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/kernels/attention/blocks.h"
#include "cpu/kernels/attention/forward_blocks.h"
#include "cpu/kernels/attention/score_tile.h"
#include "cpu/kernels/attention_bf16/kernels.h"
#include "cpu/kernels/attention_bf16/pack.h"
#include "cpu/kernels/attention_bf16/tile_product.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

static_assert(kQueryBlock % kTileBlock == 0 && kKeyBlock % kTileBlock == 0);

// Where a block of keys of one head is packed.
struct PackedKeys {
  BFloat16* keys;    // pairs of columns
  BFloat16* values;  // pairs of rows
};

PackedKeys packed_keys(const PackedForwardJob& job, std::int64_t block) {
  const std::int64_t keys = kKeyBlock * padded(job.forward->head_dim);
  BFloat16* const at = job.packed + block * (keys + kKeyBlock * padded(job.forward->value_dim));
  return {at, at + keys};
}

std::int64_t forward_pack_bytes(const AttentionJob& job) {
  return 2 * kKeyBlock * (padded(job.head_dim) + padded(job.value_dim));
}

void pack_keys(const PackedForwardJob& packed, std::int64_t block) {
  const AttentionJob& job = *packed.forward;
  const std::int64_t s = sequence_of(packed.first_block, job.num_sequences, block);
  const AttentionSequence& sequence = job.sequences[s];
  const std::int64_t a_head = attention_blocks(sequence.band.keys, kKeyBlock);
  const std::int64_t kv_head = (block - packed.first_block[s]) / a_head;
  const std::int64_t key0 = (block - packed.first_block[s]) % a_head * kKeyBlock;
  const std::int64_t keys = std::min<std::int64_t>(kKeyBlock, sequence.band.keys - key0);
  BFloat16* rows = nullptr;
  carve_scratch(
      [&](Arena& arena) { rows = arena.take<BFloat16>(kTileBlock * padded(std::max(job.head_dim, job.value_dim))); });
  const PackedKeys to = packed_keys(packed, block);
  const auto pack = [&](const HeadTensor& tensor, std::int64_t key, std::int64_t columns) {
    const std::int64_t offset = tensor.offset(sequence.batch, kv_head) + (sequence.key_begin + key0 + key) * tensor.row;
    pack_rows(tensor, offset, keys - key, columns, rows);
  };
  for (std::int64_t key = 0; key < keys; key += kTileBlock) {
    pack(job.key, key, job.head_dim);
    pack_pairs_of_columns(rows, padded(job.head_dim), to.keys + key * padded(job.head_dim));
    pack(job.value, key, job.value_dim);
    pack_pairs_of_rows(rows, padded(job.value_dim), to.values + key * padded(job.value_dim));
  }
}

// One block of queries of one head.
class ForwardBlock : ScoreTile<float, kQueryBlock, kTileBlock, false> {
  using Scores = ScoreTile<float, kQueryBlock, kTileBlock, false>;

 public:
  explicit ForwardBlock(const PackedForwardJob& packed)
      : Scores(*packed.forward),
        packed_(packed),
        query_stride_(padded(job_.head_dim)),
        value_stride_(padded(job_.value_dim)) {
    carve_scratch([this](Arena& arena) { carve(arena); });
  }

  void run(const AttentionSequence& sequence, std::int64_t head, std::int64_t first_query) {
    const Band& band = sequence.band;
    start(sequence, head, first_query);
    const std::int64_t s = &sequence - job_.sequences;
    const std::int64_t a_head = attention_blocks(band.keys, kKeyBlock);
    const std::int64_t packed0 = packed_.first_block[s] + job_.kv_head(head) * a_head;
    const PositionRange range = band.keys_of(first_query, first_query + rows_ - 1);
    for (std::int64_t key0 = range.begin / kKeyBlock * kKeyBlock; key0 < range.end; key0 += kKeyBlock) {
      start_keys(sequence, key0, std::min<std::int64_t>(kKeyBlock, band.keys - key0));
      start_head(head);
      if (!start_queries(first_query, rows_)) continue;
      const PackedKeys packed = packed_keys(packed_, packed0 + key0 / kKeyBlock);
      for (std::int64_t row = 0; row < rows_; row += kTileBlock) run_panel(row, packed);
    }
    store_softmax<float>(job_, query_offset(job_.lse), query_offset(job_.out), rows_,
                         {maximum_, sum_, out_, value_stride_});
  }

 private:
  void carve(Arena& arena) {
    Scores::carve(arena);
    queries_ = arena.take<BFloat16>(kQueryBlock * query_stride_);
    scores_ = arena.take<float>(kTileBlock * kKeyBlock);
    weights_ = arena.take<BFloat16>(kTileBlock * kKeyBlock);
    out_ = arena.take<float>(kQueryBlock * value_stride_);
    lanes_ = arena.take<float>(kTileBlock * kWidth);
    maximum_ = arena.take<float>(kQueryBlock);
    sum_ = arena.take<float>(kQueryBlock);
    base_ = arena.take<float>(kTileBlock);
    rescale_ = arena.take<float>(kTileBlock);
  }

  void start(const AttentionSequence& sequence, std::int64_t head, std::int64_t first_query) {
    rows_ = std::min<std::int64_t>(kQueryBlock, sequence.queries - first_query);
    // For rows that no block of keys is looked at for.
    sequence_ = &sequence;
    head_ = head;
    query0_ = first_query;
    const std::int64_t offset = query_offset(job_.query);
    for (std::int64_t row = 0; row < rows_; row += kTileBlock) {
      pack_rows(job_.query, offset + row * job_.query.row, rows_ - row, job_.head_dim, queries_ + row * query_stride_);
    }
    std::fill_n(maximum_, kQueryBlock, -kInfinity);
    std::fill_n(sum_, kQueryBlock, 0.0f);
    std::fill_n(out_, kQueryBlock * value_stride_, 0.0f);
  }

  // kTileBlock queries by the keys of the block that any of them looks at, in whole steps of a product.
  void run_panel(std::int64_t row0, const PackedKeys& packed) {
    const std::int64_t rows = std::min<std::int64_t>(kTileBlock, rows_ - row0);
    const PositionRange range = keys_of_rows(row0, row0 + rows);
    if (range.begin == range.end) return;
    const std::int64_t from = range.begin / kTileBlock * kTileBlock;
    const std::int64_t to = round_up(range.end, kTileBlock);
    for (std::int64_t key = from; key < to; key += kTileBlock) {
      TileProduct::multiply({queries_ + row0 * query_stride_, query_stride_, kTileBlock,
                             packed.keys + key * query_stride_, kTile, query_stride_ / kTileBlock * kTile,
                             scores_ + key, kKeyBlock, query_stride_ / kTileBlock, false});
    }
    changes_scores() ? find_maxima<true>(row0, rows, from, to) : find_maxima<false>(row0, rows, from, to);
    job_.dropout.drops() ? weigh_panel<true>(row0, rows, from, to) : weigh_panel<false>(row0, rows, from, to);
    rescale_out(row0, rows);
    for (std::int64_t column = 0; column < value_stride_; column += kTileBlock) {
      TileProduct::multiply({weights_ + from, kKeyBlock, kTileBlock,
                             packed.values + from * value_stride_ + column / 16 * kTile, value_stride_ / 16 * kTile,
                             kTile, out_ + row0 * value_stride_ + column, value_stride_, (to - from) / kTileBlock,
                             true});
    }
  }

  // Products become scores, -inf where a key is left out. Of each row the new maximum (base_), and the factor by which
  // it changes what was summed up so far (rescale_).
  template <bool kChanged>
  __attribute__((noinline)) void find_maxima(std::int64_t row0, std::int64_t rows, std::int64_t from, std::int64_t to) {
    const V lane = counting_lanes<float>();
    V capped(0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* const scores = scores_ + r * kKeyBlock;
      const RowTerms terms = terms_of(row0 + r);
      const bool none = begin_[row0 + r] == end_[row0 + r];
      const std::int64_t begin = none ? to : begin_[row0 + r];
      const std::int64_t end = none ? to : end_[row0 + r];
      // Two chains: in a single one each maximum would wait for the one before.
      V even(-kInfinity);
      V odd(-kInfinity);
      const auto visit = [&](const auto& read) {
        std::int64_t key = from;
        for (; key + 2 * kWidth <= to; key += 2 * kWidth) {
          even = max_number(even, read(key));
          odd = max_number(odd, read(key + kWidth));
        }
        for (; key < to; key += kWidth) even = max_number(even, read(key));
      };
      const auto change = [&](std::int64_t key) {
        const V changed = this->template score<kChanged>(V::load(scores + key), terms, key, lane, capped);
        changed.store(scores + key);
        return changed;
      };
      if (begin == from && end == to) {
        visit(change);
      } else {
        for (std::int64_t key = begin / kWidth * kWidth; key < end; key += kWidth) change(key);
        std::fill(scores + from, scores + begin, -kInfinity);
        std::fill(scores + end, scores + to, -kInfinity);
        visit([&](std::int64_t key) { return V::load(scores + key); });
      }
      max_number(even, odd).store(lanes_ + r * kWidth);
    }
    combine_lanes(lanes_, rows, base_, [](V a, V b) { return max_number(a, b); });
    for (std::int64_t r = 0; r < rows; r += kWidth) {
      const V before = V::load(maximum_ + row0 + r);
      const V highest = max_number(before, V::load(base_ + r));
      highest.store(maximum_ + row0 + r);
      // Where no key took part yet the maximum is -inf. The lowest number instead gives 2^-inf = 0, not NaN.
      const V base = max_number(highest, V(std::numeric_limits<float>::lowest()));
      base.store(base_ + r);
      exp2<float>(before - base).store(rescale_ + r);
    }
  }

  // Scores become weights, after dropout, rounded; their sums, before dropout and rounding, are added up.
  template <bool kDrops>
  __attribute__((noinline)) void weigh_panel(std::int64_t row0, std::int64_t rows, std::int64_t from, std::int64_t to) {
    const AttentionDropout dropout = head_dropout();
    const auto threshold = static_cast<std::uint16_t>(job_.dropout.threshold);
    for (std::int64_t r = 0; r < rows; ++r) {
      alignas(64) std::uint16_t numbers[kKeyBlock];
      if constexpr (kDrops) fill_numbers(dropout, query0_ + row0 + r, from, to, numbers);
      float* const scores = scores_ + r * kKeyBlock;
      const V base(base_[r]);
      V sum(0.0f);
      for (std::int64_t key = from; key < to; key += kTileBlock) {
        for (std::int64_t i = key; i < key + kTileBlock; i += kWidth) {
          V weight = exp2<float>(V::load(scores + i) - base);
          sum = sum + weight;
          if constexpr (kDrops) weight = keep(weight, numbers + i, threshold);
          weight.store(scores + i);
        }
        TileProduct::narrow(scores + key, weights_ + r * kKeyBlock + key);
      }
      sum.store(lanes_ + r * kWidth);
    }
    for (std::int64_t r = rows; r < kTileBlock; ++r) {
      std::fill(weights_ + r * kKeyBlock + from, weights_ + r * kKeyBlock + to, BFloat16{0});
    }
    float sums[kTileBlock];
    combine_lanes(lanes_, rows, sums, [](V a, V b) { return a + b; });
    for (std::int64_t r = 0; r < rows; r += kWidth) {
      float* const total = sum_ + row0 + r;
      fma(V::load(total), V::load(rescale_ + r), V::load(sums + r)).store(total);
    }
  }

  void rescale_out(std::int64_t row0, std::int64_t rows) {
    for (std::int64_t r = 0; r < rows; ++r) {
      if (rescale_[r] == 1) continue;
      float* const out = out_ + (row0 + r) * value_stride_;
      const V factor(rescale_[r]);
      for (std::int64_t c = 0; c < value_stride_; c += kWidth) (V::load(out + c) * factor).store(out + c);
    }
  }

  const PackedForwardJob& packed_;
  const std::int64_t query_stride_;
  const std::int64_t value_stride_;
  std::int64_t rows_ = 0;

  BFloat16* queries_;  // [row][query_stride_]
  float* scores_;      // [row of the panel][key]
  BFloat16* weights_;  // the same, rounded
  float* out_;         // [row][value_stride_]
  float* lanes_;       // [row of the panel][lane]
  float* maximum_;     // [row], in base 2
  float* sum_;         // [row]
  float* base_;        // [row of the panel]
  float* rescale_;     // [row of the panel]
};

void forward(const PackedForwardJob& job, std::int64_t first, std::int64_t last) {
  const TileProduct::Session session;
  forward_blocks(*job.forward, ForwardBlock(job), first, last);
}

void multiply_blocks(const TileBlock& block) {
  const TileProduct::Session session;
  TileProduct::multiply(block);
}

void narrow_rows(const float* even, const float* odd, BFloat16* row, BFloat16* pairs) {
  TileProduct::narrow(even, row);
  TileProduct::narrow_pairs(even, odd, pairs);
}

}  // namespace

void fill_bf16_forward(Bf16Attention& kernels) {
  kernels.key_block = kKeyBlock;
  kernels.forward_pack_bytes = forward_pack_bytes;
  kernels.pack_keys = pack_keys;
  kernels.forward = forward;
  kernels.multiply = multiply_blocks;
  kernels.narrow = narrow_rows;
}

}  // namespace fusestep::FUSESTEP_ISA
