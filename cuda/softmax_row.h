// A row of the masked softmax, read and written in groups of eight keys: those that share a Philox call. A group is 16
// bytes of a 16-bit dtype, so that neighbours go by the widest instructions wherever strides and alignment allow it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/values.h"
#include "jobs/masked_softmax.h"
#include "jobs/softmax_blocks.h"
#include "math/attention/dropout.h"
#include "math/attention/score.h"

namespace fusestep::cuda {

inline constexpr int kGroup = kDropoutGroup;

__device__ __forceinline__ std::int64_t row_offset(const HeadTensor& tensor, const SoftmaxPosition& at) {
  return at.batch * tensor.batch + at.head * tensor.head + at.query * tensor.row;
}

// Elements of a row that lie `step` apart.
template <class S>
struct RowElements {
  static constexpr int kPack = kPackOf<S> < kGroup ? kPackOf<S> : kGroup;

  S* data;
  std::int64_t step;
  bool in_packs;  // whole groups may be read and written as packs

  __device__ __forceinline__ RowElements(const HeadTensor& tensor, S* base, const SoftmaxPosition& at)
      : data(base + row_offset(tensor, at)), step(tensor.column), in_packs(step == 1 && is_aligned<S, kPack>(data)) {}

  // The group at `first`, of which `count` exist. Calls take(i, element) for each that exists.
  template <class Take>
  __device__ __forceinline__ void read(std::int64_t first, int count, const Take& take) const {
    if (in_packs && count == kGroup) {
#pragma unroll
      for (int part = 0; part < kGroup; part += kPack) {
        const auto pack = pack_at<std::remove_const_t<S>, kPack>(data + first + part);
#pragma unroll
        for (int i = 0; i < kPack; ++i) take(part + i, pack.value[i]);
      }
      return;
    }
    const S* const from = data + first * step;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < count) take(i, from[i * step]);
    }
  }

  template <class T>
  __device__ __forceinline__ void write(std::int64_t first, int count, const T (&value)[kGroup]) const {
    if (in_packs && count == kGroup) {
#pragma unroll
      for (int part = 0; part < kGroup; part += kPack) {
        S stored[kPack];
#pragma unroll
        for (int i = 0; i < kPack; ++i) narrow(value[part + i], stored[i]);
        store_neighbours(data + first + part, stored);
      }
      return;
    }
    S* const to = data + first * step;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < count) narrow(value[i], to[i * step]);
    }
  }
};

// Divisions of 64 bits take a hundred instructions, those of 32 a dozen.
template <class Integer>
__device__ __forceinline__ SoftmaxPosition position_of_row(const SoftmaxJob& job, std::int64_t number) {
  const auto row = static_cast<Integer>(number);
  const auto queries = static_cast<Integer>(job.queries);
  const auto heads = static_cast<Integer>(job.heads);
  const Integer head = row / queries;
  return {static_cast<std::int64_t>(head / heads), static_cast<std::int64_t>(head % heads),
          static_cast<std::int64_t>(row % queries)};
}
__device__ __forceinline__ SoftmaxPosition position_of_row(const SoftmaxJob& job, std::int64_t number) {
  return job.rows() <= INT32_MAX ? position_of_row<std::uint32_t>(job, number)
                                 : position_of_row<std::uint64_t>(job, number);
}

__device__ __forceinline__ std::int64_t number_of_row(const SoftmaxJob& job, const SoftmaxPosition& at) {
  return (at.batch * job.heads + at.head) * job.queries + at.query;
}

template <class S>
struct SoftmaxRow {
  using T = typename Wide<S>::type;

  const SoftmaxJob& job;
  SoftmaxPosition at;
  PositionRange range;  // of the keys that causal, window and key length leave
  RowElements<const S> scores;
  T scale_base2;
  AttentionDropout dropout;
  DropoutQuery<std::uint32_t> dropout_query;

  __device__ __forceinline__ SoftmaxRow(const SoftmaxJob& j, const SoftmaxPosition& position)
      : job(j),
        at(position),
        range(j.bands[position.batch].keys_of(position.query)),
        scores(j.scores, static_cast<const S*>(j.scores.data), position),
        scale_base2(static_cast<T>(j.scale * kLog2E)),
        dropout(j.dropout, position.batch * j.heads + position.head),
        dropout_query(dropout.query(static_cast<std::uint32_t>(position.query))) {}

  // How many keys of the group exist.
  __device__ __forceinline__ int count(std::int64_t first) const { return part_of_group(job.keys - first); }

  // The scores of a group in base 2; -inf where the key is left out.
  __device__ __forceinline__ void read_scores(std::int64_t first, T (&score)[kGroup]) const {
    const int begin = part_of_group(range.begin - first), end = part_of_group(range.end - first);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) score[i] = minus_infinity<T>();
    if (begin >= end) return;
    scores.read(first, count(first), [&](int i, S element) { score[i] = widened<T>(element) * scale_base2; });
    if (job.mask.data != nullptr) apply_mask(first, score);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < begin || i >= end) score[i] = minus_infinity<T>();
    }
  }

  // Bit i is set where dropout leaves key i of the group.
  __device__ __forceinline__ unsigned kept(std::int64_t first) const {
    if (!job.dropout.drops()) return 0xff;
    const auto words = dropout.words(dropout_query, dropout.keys(static_cast<std::uint32_t>(first / kGroup)));
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      bits |= static_cast<unsigned>(philox_number(words, i) >= job.dropout.threshold) << i;
    }
    return bits;
  }

  // Of a group, for the backward pass: p, and the gradient of what dropout is applied to. Zeros for what is left out.
  __device__ __forceinline__ void read_gradients(const RowElements<const S>& grad_out, std::int64_t first, T lse_base2,
                                                 T (&p)[kGroup], T (&grad)[kGroup]) const {
    const int begin = part_of_group(range.begin - first), end = part_of_group(range.end - first);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) p[i] = grad[i] = T(0);
    if (begin >= end) return;
    read_scores(first, p);
    const unsigned left = kept(first);
    const T factor = static_cast<T>(job.dropout.scale());
    grad_out.read(first, count(first), [&](int i, S element) {
      if (i >= begin && i < end && (left >> i & 1) != 0) grad[i] = widened<T>(element) * factor;
    });
#pragma unroll
    for (int i = 0; i < kGroup; ++i) p[i] = power_of_two(p[i] - lse_base2);
  }

  __device__ __forceinline__ T lse() const { return static_cast<const T*>(job.lse.data)[row_offset(job.lse, at)]; }

 private:
  static __device__ __forceinline__ int part_of_group(std::int64_t keys) {
    return keys <= 0 ? 0 : keys >= kGroup ? kGroup : static_cast<int>(keys);
  }

  __device__ __forceinline__ void apply_mask(std::int64_t first, T (&score)[kGroup]) const {
    if (job.mask_dtype == DType::boolean) {
      const RowElements mask(job.mask, static_cast<const std::uint8_t*>(job.mask.data), at);
      mask.read(first, count(first), [&](int i, std::uint8_t included) {
        if (included == 0) score[i] = minus_infinity<T>();
      });
      return;
    }
    with_dtype(job.mask_dtype, job.mask.data, [&]<class M>(const M* data) {
      const RowElements<const M> mask(job.mask, data, at);
      mask.read(first, count(first), [&](int i, M element) { score[i] = add_mask<T>(score[i], widened<T>(element)); });
    });
  }
};

}  // namespace fusestep::cuda
