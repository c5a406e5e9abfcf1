// The forward pass of attention: each block of queries visits the tiles of keys that its band leaves and updates the
// softmax after each (online softmax). The scores of a tile are stored transposed, [key][query]: maxima and sums are
// then taken between vectors, not within one, and the weights already have the layout of the second product.
#include <algorithm>
#include <limits>

#include "cpu/kernels/attention/forward_blocks.h"
#include "cpu/kernels/attention/gemm.h"
#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/tiles.h"
#include "cpu/kernels/kernels.h"
#include "math/attention/dropout.h"
#include "math/attention/score.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

constexpr int kKeyTile = 128;
constexpr int kWordKeys = 32;  // keys whose bits share a word
constexpr int kWords = kKeyTile / kWordKeys;

// x where its number, the upper half of a word, is not below the threshold; else 0.
FUSESTEP_HD Vec<float> keep_by_words(Vec<float> x, const std::uint32_t* words, int shift, std::uint32_t threshold) {
  return keep(x, Vec<std::uint32_t>::load(words) << shift, Vec<std::uint32_t>(threshold << 16));
}
FUSESTEP_HD Vec<double> keep_by_words(Vec<double> x, const std::uint32_t* words, int shift, std::uint32_t threshold) {
  std::uint16_t numbers[Vec<double>::kWidth];
  for (int i = 0; i < Vec<double>::kWidth; ++i) numbers[i] = static_cast<std::uint16_t>(words[i] << shift >> 16);
  return keep(x, numbers, static_cast<std::uint16_t>(threshold));
}

// One block of queries of one head.
template <class T>
class ForwardBlock {
  using V = Vec<T>;
  using W = Vec<std::uint32_t>;
  static constexpr int kP = kPanel<T>;
  static constexpr int kWidth = V::kWidth;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  explicit ForwardBlock(const AttentionJob& job) : job_(job), value_stride_(round_up(job.value_dim, kWidth)) {
    carve_scratch([this](Arena& arena) { carve(arena); });
  }

  void run(const AttentionSequence& sequence, std::int64_t head, std::int64_t first_query) {
    sequence_ = &sequence;
    head_ = head;
    query0_ = first_query;
    rows_ = std::min<std::int64_t>(kQueryBlock, sequence.queries - first_query);
    terms_ = ScoreTerms<T>(job_.scale, job_.softcap, slope_of(job_, sequence, head));
    start();
    prefetched_ = 0;
    const PositionRange keys = keys_of(0, rows_);
    for (std::int64_t key = keys.begin; key < keys.end; key += kKeyTile) {
      run_tile(key, std::min<std::int64_t>(kKeyTile, keys.end - key));
    }
    finish();
  }

 private:
  void carve(Arena& arena) {
    queries_t_ = arena.take<T>(kQueryBlock * job_.head_dim);
    scores_ = arena.take<T>(kKeyTile * kP);
    out_ = arena.take<T>(kQueryBlock * value_stride_);
    keys_ = arena.take<T>(kKeyTile * job_.head_dim);
    values_ = arena.take<T>(kKeyTile * value_stride_);
    maximum_ = arena.take<T>(kQueryBlock);
    sum_ = arena.take<T>(kQueryBlock);
    rescale_ = arena.take<T>(kQueryBlock);
    bits_ = arena.take<std::uint32_t>(kWords * kQueryBlock);
    query_high_ = arena.take<std::uint32_t>(kQueryBlock + W::kWidth);
    query_low_ = arena.take<std::uint32_t>(kQueryBlock + W::kWidth);
    drop_words_ = arena.take<std::uint32_t>(4 * kP + W::kWidth);
  }

  // The keys that any of rows [first, last) of this block may look at.
  PositionRange keys_of(std::int64_t first, std::int64_t last) const {
    // Both ends never fall from row to row. Those of empty ranges may lie beyond the last key.
    const std::int64_t begin = sequence_->band.keys_of(query0_ + first).begin;
    const std::int64_t end = std::min(sequence_->band.keys_of(query0_ + last - 1).end, sequence_->band.keys);
    return {begin, std::max(begin, end)};
  }

  std::int64_t query_offset(const HeadTensor& tensor) const {
    return tensor.offset(sequence_->batch, head_) + (sequence_->query_begin + query0_) * tensor.row;
  }

  void start() {
    with_elements(job_.query.data, job_.dtype, query_offset(job_.query), [&](const auto* from) {
      const V scale(terms_.query_scale);
      for (std::int64_t row = 0; row < rows_; row += kP) {
        T* to = queries_t_ + row * job_.head_dim;
        for_each_column<T>(
            from + row * job_.query.row, job_.query.row, job_.query.column, std::min<std::int64_t>(kP, rows_ - row),
            job_.head_dim,
            [&](std::int64_t column, std::int64_t lane, V x) { (x * scale).store(to + column * kP + lane); });
      }
    });
    std::fill_n(maximum_, kQueryBlock, -kInfinity);
    std::fill_n(sum_, kQueryBlock, T(0));
    std::fill_n(out_, rows_ * value_stride_, T(0));
    if (job_.dropout.drops()) {
      const AttentionDropout dropout(job_.dropout, sequence_->batch * job_.heads + head_);
      for (std::int64_t row = 0; row < kQueryBlock; row += W::kWidth) {
        const DropoutQuery<W> query = dropout.query(W::iota(static_cast<std::uint32_t>(query0_ + row)));
        query.high.store(query_high_ + row);
        query.low.store(query_low_ + row);
      }
    }
  }

  // Which keys of the tile each query attends to, by the band and by a boolean mask. False: none at all.
  bool fill_bits(std::int64_t key0, std::int64_t keys) {
    const bool boolean = masked_by_booleans();
    if (!boolean && rows_ % kP == 0 && !restricts(0, rows_, {key0, key0 + keys})) return true;
    const Band band = sequence_->band;
    const auto* mask = static_cast<const std::uint8_t*>(job_.mask.data);
    if (boolean) mask += query_offset(job_.mask) + (sequence_->key_begin + key0) * job_.mask.column;
    std::uint32_t any = 0;
    for (std::int64_t first = 0; first < keys; first += kWordKeys) {
      std::uint32_t* bits = bits_ + first / kWordKeys * kQueryBlock;
      const std::int64_t count = std::min<std::int64_t>(kWordKeys, keys - first);
      const std::int64_t most = std::min(first + count, band.keys - key0) - first;
      const std::int64_t beside = query0_ + band.shift - key0 - first;  // the key on the diagonal of the first query
      for (std::int64_t row = 0; row < kQueryBlock; ++row) {
        const std::int64_t end = beside + row + band.right + 1;
        bits[row] = bits_between(beside + row - band.left, end < most ? end : most);
      }
      if (boolean) {
        for (std::int64_t row = 0; row < rows_; ++row) {
          bits[row] &= bits_of_booleans(mask + row * job_.mask.row + first * job_.mask.column, job_.mask.column, count);
        }
      }
      for (std::int64_t row = 0; row < rows_; ++row) any |= bits[row];
    }
    return any != 0;
  }

  bool masked_by_booleans() const { return job_.mask.data != nullptr && job_.mask_dtype == DType::boolean; }

  // Whether the band leaves out any of these keys for any of rows [first, last).
  bool restricts(std::int64_t first, std::int64_t last, PositionRange keys) const {
    const PositionRange front = sequence_->band.keys_of(query0_ + first);
    const PositionRange back = sequence_->band.keys_of(query0_ + last - 1);
    return back.begin > keys.begin || front.end < keys.end;
  }

  void run_tile(std::int64_t key0, std::int64_t keys) {
    if (!fill_bits(key0, keys)) return;
    const std::int64_t kv_head = job_.kv_head(head_);
    const auto offset = [&](const HeadTensor& tensor) {
      return tensor.offset(sequence_->batch, kv_head) + (sequence_->key_begin + key0) * tensor.row;
    };
    const Rows<T> key_rows = rows_of(keys_, job_.head_dim, job_.key, job_.dtype, offset(job_.key), keys, job_.head_dim);
    const Rows<T> value_rows =
        rows_of(values_, value_stride_, job_.value, job_.dtype, offset(job_.value), keys, job_.value_dim);
    for (std::int64_t row = 0; row < rows_; row += kP) run_panel(row, key0, keys, key_rows, value_rows);
  }

  void run_panel(std::int64_t row0, std::int64_t key0, std::int64_t keys, Rows<T> key_rows, Rows<T> value_rows) {
    const std::int64_t rows = std::min<std::int64_t>(kP, rows_ - row0);
    const PositionRange range = keys_of(row0, row0 + rows);
    const std::int64_t begin = std::max(range.begin - key0, std::int64_t{0});
    const std::int64_t end = std::min(range.end - key0, keys);
    if (begin >= end) return;
    for (int n = 0; n < kVecs; ++n) {
      const std::int64_t first = n * kWidth;
      vector_keys_[n] = {end, end};  // vectors without a row have no keys
      if (first >= rows) continue;
      const PositionRange keys_of_vector = keys_of(row0 + first, row0 + std::min<std::int64_t>(first + kWidth, rows));
      vector_keys_[n] = {std::max(keys_of_vector.begin - key0, begin), std::min(keys_of_vector.end - key0, end)};
    }
    score_panel(row0, begin, end, key_rows);
    if (terms_.changes()) change_scores(row0, key0, begin, end);
    if (job_.mask.data != nullptr && !masked_by_booleans()) add_mask_panel(row0, rows, key0, begin, end);
    if (masked_by_booleans() || rows < kP || restricts(row0, row0 + rows, {key0 + begin, key0 + end})) {
      weigh_panel<true>(row0, key0, begin, end);
    } else {
      weigh_panel<false>(row0, key0, begin, end);
    }
    output_panel(row0, rows, key0, begin, end, value_rows);
  }

  // scores_ = keys . queries, for the vectors of queries that may look at any of a block of keys.
  void score_panel(std::int64_t row0, std::int64_t begin, std::int64_t end, Rows<T> keys) {
    const T* queries_t = queries_t_ + row0 * job_.head_dim;
    const RowBlocks blocks(end - begin);
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      const std::int64_t key = begin + blocks.begin(b);
      const std::int64_t count = begin + blocks.begin(b + 1) - key;
      // Later vectors begin and end no earlier.
      int first = 0;
      int last = kVecs;
      while (first < last && vector_keys_[first].end <= key) ++first;
      while (first < last && vector_keys_[last - 1].begin >= key + count) --last;
      if (first == last) continue;
      const std::int64_t lane = first * kWidth;
      kScoreBlocks<T>.of[count - 1][last - first - 1](keys.data + key * keys.stride, keys.stride, queries_t + lane,
                                                      job_.head_dim, scores_ + key * kP + lane);
    }
  }

  void change_scores(std::int64_t row0, std::int64_t key0, std::int64_t begin, std::int64_t end) {
    T position[kWidth];
    for (std::int64_t lane = 0; lane < kP; lane += kWidth) {
      for (int i = 0; i < kWidth; ++i) {
        position[i] = static_cast<T>(query0_ + row0 + lane + i + sequence_->band.shift - key0);
      }
      const V query = V::load(position);
      for (std::int64_t key = begin; key < end; ++key) {
        T* score = scores_ + key * kP + lane;
        terms_(V::load(score), abs(query - V(static_cast<T>(key)))).store(score);
      }
    }
  }

  void add_mask_panel(std::int64_t row0, std::int64_t rows, std::int64_t key0, std::int64_t begin, std::int64_t end) {
    const std::int64_t offset =
        query_offset(job_.mask) + row0 * job_.mask.row + (sequence_->key_begin + key0 + begin) * job_.mask.column;
    with_elements(job_.mask.data, job_.mask_dtype, offset, [&](const auto* from) {
      for_each_column<T>(from, job_.mask.row, job_.mask.column, rows, end - begin,
                         [&](std::int64_t key, std::int64_t lane, V mask) {
                           T* score = scores_ + (begin + key) * kP + lane;
                           add_mask<T>(V::load(score), mask).store(score);
                         });
    });
  }

  // scores_ become weights: 2^(score - maximum), after dropout. For each row the maximum, the sum before dropout
  // and the factor that rescales earlier sums are stored.
  template <bool kRestricted>
  void weigh_panel(std::int64_t row0, std::int64_t key0, std::int64_t begin, std::int64_t end) {
    const auto score = [&](std::int64_t key, std::int64_t lane) {
      const V s = V::load(scores_ + key * kP + lane);
      if constexpr (!kRestricted) return s;
      const std::uint32_t* words = bits_ + key / kWordKeys * kQueryBlock + row0 + lane;
      return V::choose(words, std::uint32_t{1} << key % kWordKeys, s, V(-kInfinity));
    };
    V maximum[kVecs];
    V sum[kVecs];
    for (int n = 0; n < kVecs; ++n) {
      const std::int64_t lane = n * kWidth;
      const V before = V::load(maximum_ + row0 + lane);
      // Four chains: in a single one each maximum would wait for the one before.
      V part[4] = {before, before, before, before};
      const PositionRange keys = kRestricted ? vector_keys_[n] : PositionRange{begin, end};
      std::int64_t key = keys.begin;
      for (; key + 4 <= keys.end; key += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) part[i] = max_number(part[i], score(key + i, lane));
      }
      for (; key < keys.end; ++key) part[0] = max_number(part[0], score(key, lane));
      const V highest = max_number(max_number(part[0], part[1]), max_number(part[2], part[3]));
      highest.store(maximum_ + row0 + lane);
      // Where no key took part yet the maximum is -inf. The lowest number instead gives 2^-inf = 0, not NaN.
      maximum[n] = max_number(highest, V(std::numeric_limits<T>::lowest()));
      exp2<T>(before - maximum[n]).store(rescale_ + row0 + lane);
      sum[n] = V(T(0));
    }
    const bool drops = job_.dropout.drops();
    const AttentionDropout dropout(job_.dropout, sequence_->batch * job_.heads + head_);
    std::int64_t words_of = -1;
    for (std::int64_t key = begin; key < end; ++key) {
      prefetch_query();
      const std::int64_t position = key0 + key;
      if (drops && position / kDropoutGroup != words_of) {
        words_of = position / kDropoutGroup;
        fill_drop_words(dropout, row0, words_of);
      }
      const auto in_group = static_cast<int>(position % kDropoutGroup);
      const std::uint32_t* words = drop_words_ + in_group / 2 * kP;
      for (int n = 0; n < kVecs; ++n) {
        const std::int64_t lane = n * kWidth;
        if (kRestricted && (key < vector_keys_[n].begin || key >= vector_keys_[n].end)) {
          V(T(0)).store(scores_ + key * kP + lane);
          continue;
        }
        V weight = exp2<T>(score(key, lane) - maximum[n]);
        sum[n] = sum[n] + weight;
        if (drops) weight = keep_by_words(weight, words + lane, in_group % 2 == 0 ? 16 : 0, job_.dropout.threshold);
        weight.store(scores_ + key * kP + lane);
      }
    }
    for (int n = 0; n < kVecs; ++n) {
      T* total = sum_ + row0 + n * kWidth;
      fma(V::load(total), V::load(rescale_ + row0 + n * kWidth), sum[n]).store(total);
    }
  }

  // Prefetches one row of the next block of queries in memory, which probably runs next. This is done row by row
  // between arithmetic that needs no memory. Without it start() waits for most of its loads.
  void prefetch_query() {
    if (prefetched_ == kQueryBlock) return;
    const HeadTensor& query = job_.query;
    const std::int64_t size = size_of(job_.dtype);
    const std::int64_t row = query_offset(query) + (kQueryBlock + prefetched_++) * query.row;
    // As a number: the row may lie beyond the array.
    const auto at = reinterpret_cast<std::uintptr_t>(query.data) + static_cast<std::uintptr_t>(row * size);
    for (std::int64_t byte = 0; byte < job_.head_dim * size; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(at + static_cast<std::uintptr_t>(byte)));
    }
  }

  void fill_drop_words(const AttentionDropout& dropout, std::int64_t row0, std::int64_t group) {
    const DropoutKeys<std::uint32_t> keys = dropout.keys(static_cast<std::uint32_t>(group));
    const DropoutKeys<W> spread{W(keys.round2), W(keys.round3_word0), W(keys.round3_word2), W(keys.round3_word3)};
    for (std::int64_t lane = 0; lane < kP; lane += W::kWidth) {
      const DropoutQuery<W> query{W::load(query_high_ + row0 + lane), W::load(query_low_ + row0 + lane)};
      const PhiloxWords<W> words = dropout.words(query, spread);
      for (int i = 0; i < 4; ++i) words.word[i].store(drop_words_ + i * kP + lane);
    }
  }

  // out_ = out_ * rescale_ + weights . values; each block of rows reads only the keys that its rows may attend to.
  void output_panel(std::int64_t row0, std::int64_t rows, std::int64_t key0, std::int64_t begin, std::int64_t end,
                    Rows<T> values) {
    const std::int64_t columns = value_stride_ / kWidth;
    const RowBlocks blocks(rows);
    for (std::int64_t column = 0; column < columns; column += kVecs) {
      const std::int64_t vecs = std::min<std::int64_t>(kVecs, columns - column);
      for (std::int64_t b = 0; b < blocks.count; ++b) {
        const std::int64_t row = row0 + blocks.begin(b);
        const std::int64_t count = row0 + blocks.begin(b + 1) - row;
        const PositionRange range = keys_of(row, row + count);
        const std::int64_t from = std::max(range.begin - key0, begin);
        const std::int64_t to = std::min(range.end - key0, end);
        kOutputBlocks<T>.of[count - 1][vecs - 1](scores_ + from * kP + row - row0,
                                                 values.data + from * values.stride + column * kWidth, values.stride,
                                                 std::max(to - from, std::int64_t{0}), rescale_ + row,
                                                 out_ + row * value_stride_ + column * kWidth, value_stride_);
      }
    }
  }

  void finish() {
    store_softmax<T>(job_, query_offset(job_.lse), query_offset(job_.out), rows_,
                     {maximum_, sum_, out_, value_stride_});
  }

  const AttentionJob& job_;
  const std::int64_t value_stride_;  // of values and outputs in scratch: whole vectors
  const AttentionSequence* sequence_ = nullptr;
  std::int64_t head_ = 0;
  std::int64_t query0_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t prefetched_ = 0;
  PositionRange vector_keys_[kVecs];  // of the current panel and tile: the keys of each vector of queries
  ScoreTerms<T> terms_{1, 0, 0};

  T* queries_t_;  // [panel][head dim][kP], scaled
  T* scores_;     // [key][kP] of one panel
  T* out_;        // [row][value_stride_]
  T* keys_;       // [key][head dim]: a copy, for arrays that the products cannot read directly
  T* values_;     // [key][value_stride_], as well
  T* maximum_;    // [row], in base 2
  T* sum_;
  T* rescale_;
  std::uint32_t* bits_;        // [key / 32][row]
  std::uint32_t* query_high_;  // [row]: DropoutQuery
  std::uint32_t* query_low_;
  std::uint32_t* drop_words_;  // [4][kP]
};

void attention_forward(const AttentionJob& job, std::int64_t first, std::int64_t last) {
  if (job.dtype == DType::float64) {
    forward_blocks(job, ForwardBlock<double>(job), first, last);
  } else {
    forward_blocks(job, ForwardBlock<float>(job), first, last);
  }
}

}  // namespace

void fill_attention_forward(CpuKernels& kernels) { kernels.attention_forward = attention_forward; }

}  // namespace fusestep::FUSESTEP_ISA
