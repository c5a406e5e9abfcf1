// What the kernels without tensor cores have in common: products of tiles, scores, weights and their gradients.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/attention/plain.h"
#include "cuda/attention/scores.h"
#include "cuda/launch.h"
#include "cuda/values.h"
#include "math/attention/score.h"

namespace fusestep::cuda {

inline constexpr int kPlainThreads = 128;
inline constexpr int kPlainRows = 8;  // queries of a warp

// Rows of one head of one sequence.
template <class S>
struct PlainRows {
  using T = typename Wide<std::remove_const_t<S>>::type;

  S* data;
  std::int64_t row;
  std::int64_t column;
  int count;
  int columns;

  __device__ __forceinline__ PlainRows(const HeadTensor& tensor, std::int64_t batch, std::int64_t head,
                                       std::int64_t begin, std::int64_t rows, std::int64_t width)
      : data(static_cast<S*>(tensor.data) + tensor.offset(batch, head) + begin * tensor.row),
        row(tensor.row),
        column(tensor.column),
        count(static_cast<int>(rows)),
        columns(static_cast<int>(width)) {}

  // 0 where there is no such row or column.
  __device__ __forceinline__ T operator()(int r, int c) const {
    return r < count && c < columns ? widened<T>(data[r * row + c * column]) : T(0);
  }
  __device__ __forceinline__ void set(int r, int c, T value) const {
    if (r < count && c < columns) narrow(value, data[r * row + c * column]);
  }
};

// Shared memory of a block.
template <class T>
struct PlainMemory {
  static constexpr int kDepth = 32;  // of a product, at a time

  alignas(16) T left[kPlainTile][kDepth];
  T right[kPlainTile][kDepth + 1];       // padded: threads read different rows of one column
  T weight[kPlainTile][kPlainTile + 1];  // scores, then what follows from them: [query][key]
  T grad[kPlainTile][kPlainTile + 1];
  T of_row[kPlainTile];
};

__device__ __forceinline__ int plain_warp() { return static_cast<int>(threadIdx.x / 32); }
__device__ __forceinline__ int plain_lane() { return static_cast<int>(threadIdx.x % 32); }
// The query of the tile, and the first of eight keys, that a thread owns.
__device__ __forceinline__ int own_query() { return plain_warp() * kPlainRows + plain_lane() / 4; }
__device__ __forceinline__ int own_keys() { return plain_lane() % 4 * 8; }

// product[query][key] = sum of left(query, d) * right(key, d), of 32 rows each. For all threads of the block; the
// result is there for the own warp after a __syncwarp(), for all after a __syncthreads().
template <class T, class Left, class Right>
__device__ __forceinline__ void multiply_tiles(PlainMemory<T>& memory, T (&product)[kPlainTile][kPlainTile + 1],
                                               const Left& left, const Right& right, int depth) {
  constexpr int kDepth = PlainMemory<T>::kDepth;
  T sum[kPlainRows] = {};
  for (int begin = 0; begin < depth; begin += kDepth) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kPlainTile * kDepth; i += kPlainThreads) {
      memory.left[i / kDepth][i % kDepth] = left(i / kDepth, begin + i % kDepth);
      memory.right[i / kDepth][i % kDepth] = right(i / kDepth, begin + i % kDepth);
    }
    __syncthreads();
    for (int d = 0; d < kDepth; d += 4) {
      T key[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) key[i] = memory.right[plain_lane()][d + i];
#pragma unroll
      for (int q = 0; q < kPlainRows; ++q) {
        const T* query = &memory.left[plain_warp() * kPlainRows + q][d];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[q] = fma(query[i], key[i], sum[q]);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kPlainRows; ++q) product[plain_warp() * kPlainRows + q][plain_lane()] = sum[q];
}

// The scores of one query of one head.
template <class S>
class PlainScores {
 public:
  using T = typename Wide<S>::type;

  __device__ __forceinline__ PlainScores(const AttentionJob& job, const AttentionSequence& sequence, std::int64_t head,
                                         int query)
      : job_(job),
        terms_(job.scale, job.softcap, alibi_slope(job, sequence.batch, head)),
        range_(query < sequence.queries ? sequence.band.keys_of(query) : PositionRange{0, 0}),
        mask_(static_cast<const char*>(job.mask.data)),
        aligned_key_(query + sequence.band.shift),
        query_(query),
        batch_head_(sequence.batch * job.heads + head) {
    if (mask_ == nullptr) return;
    mask_at_ = job.mask.offset(sequence.batch, head) + (sequence.query_begin + query) * job.mask.row +
               sequence.key_begin * job.mask.column;
  }

  __device__ __forceinline__ bool attends(std::int64_t key) const { return key >= range_.begin && key < range_.end; }

  // In base 2; -inf where the key is left out. slope: the derivative by the scaled product.
  __device__ __forceinline__ T operator()(T product, std::int64_t key, T& slope) const {
    slope = 1;
    if (!attends(key)) return minus_infinity<T>();
    T x = product * terms_.query_scale;
    if (terms_.cap != 0) {
      const T t = terms_.capped_tanh(x);
      slope = fma(-t, t, T(1));
    }
    if (terms_.changes()) {
      const std::int64_t distance = aligned_key_ - key;
      x = terms_(x, static_cast<T>(distance < 0 ? -distance : distance));
    }
    if (mask_ == nullptr) return x;
    const std::int64_t at = mask_at_ + key * job_.mask.column;
    if (job_.mask_dtype == DType::boolean) {
      return reinterpret_cast<const std::uint8_t*>(mask_)[at] != 0 ? x : minus_infinity<T>();
    }
    T mask = 0;
    with_dtype(job_.mask_dtype, job_.mask.data, [&](const auto* data) { mask = widened<T>(data[at]); });
    return add_mask<T>(x, mask);
  }

  // The words for a group of eight keys.
  __device__ __forceinline__ PhiloxWords<std::uint32_t> words(std::int64_t key) const {
    if (!job_.dropout.drops()) return {};
    return attention_dropout_words(job_.dropout, key, query_, batch_head_);
  }

 private:
  const AttentionJob& job_;
  ScoreTerms<T> terms_;
  PositionRange range_;
  const char* mask_;
  std::int64_t mask_at_ = 0;
  std::int64_t aligned_key_;
  std::int64_t query_;
  std::int64_t batch_head_;
};

// Of a tile of queries and keys in the backward pass: weights in memory.weight (with dropout, unscaled), and the
// gradients of the scaled products in memory.grad. For all threads; the results are there for all of them afterwards.
template <class S>
__device__ __forceinline__ void plain_gradients(const AttentionArguments& arguments,
                                                PlainMemory<typename Wide<S>::type>& memory,
                                                const AttentionSequence& sequence, std::int64_t head, int query,
                                                int key, bool of_mask = false) {
  using T = typename Wide<S>::type;
  const AttentionJob& job = arguments.job;
  const std::int64_t kv_head = job.kv_head(head);
  const auto rows = [&](const HeadTensor& tensor, std::int64_t h, std::int64_t begin, std::int64_t count,
                        std::int64_t width) {
    return PlainRows<const S>(tensor, sequence.batch, h, begin, count, width);
  };
  const auto queries = rows(job.query, head, sequence.query_begin, sequence.queries, job.head_dim);
  const auto keys = rows(job.key, kv_head, sequence.key_begin, sequence.band.keys, job.head_dim);
  const auto values = rows(job.value, kv_head, sequence.key_begin, sequence.band.keys, job.value_dim);
  const auto grads = rows(arguments.grads.grad_out, head, sequence.query_begin, sequence.queries, job.value_dim);
  multiply_tiles(
      memory, memory.weight, [&](int r, int d) { return queries(query + r, d); },
      [&](int r, int d) { return keys(key + r, d); }, queries.columns);
  multiply_tiles(
      memory, memory.grad, [&](int r, int d) { return grads(query + r, d); },
      [&](int r, int d) { return values(key + r, d); }, grads.columns);
  __syncwarp();
  const int own = query + own_query();
  const PlainScores<S> scores(job, sequence, head, own);
  const bool exists = own < sequence.queries;
  const std::int64_t row = sequence.query_begin + own;
  const T lse = exists ? static_cast<const T*>(job.lse.data)[job.lse.offset(sequence.batch, head) + row * job.lse.row]
                       : minus_infinity<T>();
  const T delta = exists ? static_cast<const T*>(arguments.delta)[arguments.delta_at(sequence.batch, head, row)] : T(0);
  const bool empty = lse == minus_infinity<T>();
  const auto words = scores.words(key + own_keys());
  const T scale = static_cast<T>(job.dropout.scale());
  for (int i = 0; i < 8; ++i) {
    T& weight = memory.weight[own_query()][own_keys() + i];
    T& grad = memory.grad[own_query()][own_keys() + i];
    T slope;
    const T score = scores(weight, key + own_keys() + i, slope);
    const T p = empty ? T(0) : power_of_two(score - lse * static_cast<T>(kLog2E));
    const bool kept = philox_number(words, i) >= job.dropout.threshold;
    weight = kept ? p : T(0);
    // p is 0 for keys that are left out: their products may be anything.
    grad = p == 0 ? T(0) : p * ((kept ? grad * scale : T(0)) - delta) * (of_mask ? T(1) : slope);
  }
  __syncthreads();
}

}  // namespace fusestep::cuda
