// From the products of queries and keys to scores in base 2, in the tensor cores' registers: scale, soft cap, ALiBi,
// masks.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/attention/arguments.h"
#include "cuda/attention/hardware.h"
#include "cuda/attention/tile.h"
#include "cuda/values.h"
#include "math/attention/score.h"

namespace fusestep::cuda {

// What a kernel is compiled for. `any` takes every option there is, at the price of more registers; the others are for
// scores without soft cap and ALiBi, of a scale above 0.
enum class Mask { none, boolean, additive, any };

// Which accumulator holds key `key` of a block of 32 for this thread: it owns keys 8 t to 8 t + 7 of row r or r + 8.
__device__ __forceinline__ constexpr int element_of(int block, int row, int key) {
  return 4 * (4 * block + key / 2) + 2 * row + key % 2;
}

// The first row of its group's 64 that a thread holds; the other one is 8 below. kProducers: threads before the
// groups'.
template <int kProducers>
__device__ __forceinline__ int row_of_thread() {
  return static_cast<int>((threadIdx.x - kProducers) / 32 % 4 * 16 + threadIdx.x % 32 / 4);
}

// Where the mask of a head begins: its row of query 0 and key 0; nullptr: there is none.
__device__ __forceinline__ const char* mask_of_head(const AttentionJob& job, const AttentionSequence& sequence,
                                                    std::int64_t head) {
  if (job.mask.data == nullptr) return nullptr;
  const std::int64_t begin = job.mask.offset(sequence.batch, head) + sequence.query_begin * job.mask.row +
                             sequence.key_begin * job.mask.column;
  return static_cast<const char*>(job.mask.data) + begin * size_of(job.mask_dtype);
}

// Two rows of a boolean or additive mask.
class MaskRows {
 public:
  // first: of mask_of_head. queries, keys: of the sequence.
  __device__ __forceinline__ MaskRows(const AttentionJob& job, const char* first, int query, int queries, int keys)
      : job_(job), keys_(keys) {
    const auto size = static_cast<unsigned>(size_of(job.mask_dtype));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = query + 8 * r < queries ? query + 8 * r : queries - 1;
      rows_[r] = first + row * job.mask.row * size;
    }
    const unsigned bytes = size == 1 ? 8 : 16;
    vectors_ = job.mask.column == 1 && reinterpret_cast<std::uintptr_t>(first) % bytes == 0 &&
               static_cast<std::uintptr_t>(job.mask.row) * size % bytes == 0;
  }

  __device__ __forceinline__ bool exists() const { return job_.mask.data != nullptr; }
  __device__ __forceinline__ bool boolean() const { return job_.mask_dtype == DType::boolean; }
  __device__ __forceinline__ DType dtype() const { return job_.mask_dtype; }

  // Whether vectors may be read of all keys from `first` to `end`.
  __device__ __forceinline__ bool vectors(int end) const { return vectors_ && end <= keys_; }

  // Calls exclude(i) for each key + i of eight that may not be attended to. kVectors: as vectors() says of a range with
  // these keys.
  template <bool kVectors, class Exclude>
  __device__ __forceinline__ void for_each_excluded(int row, int key, const Exclude& exclude) const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(rows_[row]);
    if constexpr (kVectors) {
      const uint2 words = *reinterpret_cast<const uint2*>(bytes + key);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (((i < 4 ? words.x : words.y) & (0xffu << (8 * (i % 4)))) == 0) exclude(i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (key + i >= keys_ || bytes[(key + i) * job_.mask.column] == 0) exclude(i);
      }
    }
  }

  // S: the dtype of the queries. M: that of the mask, S or float.
  template <class S, class M, bool kVectors>
  __device__ __forceinline__ void values(int row, int key, float (&value)[8]) const {
    const auto* from = reinterpret_cast<const M*>(rows_[row]);
    if constexpr (!kVectors) {
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] = key + i < keys_ ? widened<float>(from[(key + i) * job_.mask.column]) : 0;
    } else if constexpr (std::is_same_v<M, float>) {
      const float4 low = *reinterpret_cast<const float4*>(from + key);
      const float4 high = *reinterpret_cast<const float4*>(from + key + 4);
      value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
      value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
    } else {
      const uint4 words = *reinterpret_cast<const uint4*>(from + key);
      value[0] = low_half<S>(words.x), value[1] = high_half<S>(words.x);
      value[2] = low_half<S>(words.y), value[3] = high_half<S>(words.y);
      value[4] = low_half<S>(words.z), value[5] = high_half<S>(words.z);
      value[6] = low_half<S>(words.w), value[7] = high_half<S>(words.w);
    }
  }

 private:
  const AttentionJob& job_;
  const char* rows_[2] = {};
  int keys_;
  bool vectors_ = false;
};

__device__ __forceinline__ double alibi_slope(const AttentionJob& job, std::int64_t batch, std::int64_t head) {
  if (job.alibi.data == nullptr) return 0;
  const std::int64_t at = job.alibi.offset(batch, head);
  return job.alibi_dtype == DType::float64 ? static_cast<const double*>(job.alibi.data)[at]
                                           : static_cast<double>(static_cast<const float*>(job.alibi.data)[at]);
}

// The keys that a query attends to, but for the mask; none for one that does not exist.
struct KeyRange {
  int begin;
  int end;
};

__device__ __forceinline__ KeyRange key_range(const AttentionSequence& sequence, int query) {
  if (query >= sequence.queries) return {0, 0};
  const PositionRange range = sequence.band.keys_of(query);
  return {static_cast<int>(range.begin), static_cast<int>(range.end)};
}

// The scores of the two rows that a thread holds.
template <class S, Mask kMask>
class Scores {
 public:
  // query: of the first row, counted within the sequence. mask: of mask_of_head. slope: ALiBi's. ranges: of the two
  // rows. inner: the keys that all rows attend to that are computed together; other tiles look at each key.
  __device__ __forceinline__ Scores(const AttentionJob& job, const AttentionSequence& sequence, int query,
                                    const char* mask, double slope, const KeyRange (&ranges)[2], const KeyRange& inner)
      : mask_(job, mask, query, static_cast<int>(sequence.queries), static_cast<int>(sequence.keys)),
        terms_(job.scale, job.softcap, slope),
        aligned_key_(query + static_cast<int>(sequence.band.shift)),
        ranges_{ranges[0], ranges[1]},
        inner_(inner) {}

  // What the results of apply() are to be multiplied with. Folded into the exponential, it costs nothing.
  __device__ __forceinline__ float factor() const {
    return kMask == Mask::additive || kMask == Mask::any ? 1.0f : terms_.query_scale;
  }

  // Products of keys `first` to first + kKeys - 1. slope: where it is wanted (with a soft cap), the derivative of each
  // score by its scaled product.
  template <int kKeys>
  __device__ __forceinline__ void apply(float (&score)[kKeys / 2], int first, float* slope = nullptr) const {
    if constexpr (kMask == Mask::any) {
      for_each_group<kKeys>(first, [&](int block, int r, int key) { apply_terms(score, block, r, key, slope); });
    }
    if (kMask == Mask::additive || (kMask == Mask::any && mask_.exists() && !mask_.boolean()))
      add_values<kKeys>(score, first);
    if (kMask == Mask::boolean || (kMask == Mask::any && mask_.exists() && mask_.boolean())) {
      mask_.vectors(first + kKeys) ? exclude<kKeys, true>(score, first) : exclude<kKeys, false>(score, first);
    }
    if (first >= inner_.begin && first + kKeys <= inner_.end) return;
    for_each_group<kKeys>(first, [&](int block, int r, int key) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (key + i < ranges_[r].begin || key + i >= ranges_[r].end) score[element_of(block, r, i)] = -INFINITY;
      }
    });
  }

 private:
  // Calls visit(block of 32 keys, row, first key) for the groups of eight keys that the thread owns.
  template <int kKeys, class Visit>
  __device__ __forceinline__ static void for_each_group(int first, const Visit& visit) {
#pragma unroll
    for (int block = 0; block < kKeys / 32; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) visit(block, r, first + 32 * block + 8 * static_cast<int>(threadIdx.x % 4));
    }
  }

  // What decides how a mask is read is asked once a tile, so that the loads of a tile are under way together.
  template <int kKeys>
  __device__ __forceinline__ void add_values(float (&score)[kKeys / 2], int first) const {
    const bool wide = mask_.dtype() == DType::float32;
    if (mask_.vectors(first + kKeys)) {
      wide ? add<kKeys, float, true>(score, first) : add<kKeys, S, true>(score, first);
    } else {
      wide ? add<kKeys, float, false>(score, first) : add<kKeys, S, false>(score, first);
    }
  }

  template <int kKeys, class M, bool kVectors>
  __device__ __forceinline__ void add(float (&score)[kKeys / 2], int first) const {
    for_each_group<kKeys>(first, [&](int block, int r, int key) {
      float value[8];
      mask_.template values<S, M, kVectors>(r, key, value);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = score[element_of(block, r, i)];
        x = add_mask<float>(kMask == Mask::any ? x : x * terms_.query_scale, value[i]);
      }
    });
  }

  template <int kKeys, bool kVectors>
  __device__ __forceinline__ void exclude(float (&score)[kKeys / 2], int first) const {
    for_each_group<kKeys>(first, [&](int block, int r, int key) {
      mask_.template for_each_excluded<kVectors>(r, key, [&](int i) { score[element_of(block, r, i)] = -INFINITY; });
    });
  }

  template <int kCount>
  __device__ __forceinline__ void apply_terms(float (&score)[kCount], int block, int r, int key, float* slope) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int at = element_of(block, r, i);
      float x = score[at] * terms_.query_scale;
      if (slope != nullptr) {
        const float t = terms_.cap != 0 ? terms_.capped_tanh(x) : 0;
        slope[at] = fma(-t, t, 1.0f);
      }
      if (terms_.changes()) {
        const int distance = aligned_key_ + 8 * r - key - i;
        x = terms_(x, static_cast<float>(distance < 0 ? -distance : distance));
      }
      score[at] = x;
    }
  }

  MaskRows mask_;
  ScoreTerms<float> terms_;
  int aligned_key_;
  KeyRange ranges_[2];
  KeyRange inner_;
};

}  // namespace fusestep::cuda
