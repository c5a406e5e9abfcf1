// The forward pass on tensor cores. A block of threads computes 64 queries for each of its groups; its producers copy
// the queries once and then tile after tile of keys and values, kStages of them ahead.
#pragma once

#include "cuda/attention/dropout.h"
#include "cuda/attention/products.h"
#include "cuda/attention/scores.h"
#include "cuda/attention/shapes.h"
#include "cuda/attention/softmax.h"
#include "cuda/attention/store.h"

namespace fusestep::cuda {

// The part of the work that a block of threads has. It lies in shared memory: registers are few.
struct ForwardBlock {
  AttentionSequence sequence;
  std::int64_t head;
  std::int64_t kv_head;
  int query;  // its first one
  int first_tile;
  int tiles;         // of keys: those before and after are all masked
  float keep_scale;  // dropout's

  // False: there is nothing to do.
  template <class Shape>
  __device__ __forceinline__ bool find(const AttentionArguments& arguments) {
    const AttentionLayout& layout = arguments.job.layout;
    const Tiles& tiles_of_queries = arguments.query_tiles;
    std::int64_t number = blockIdx.x % tiles_of_queries.bound;
    // The last queries of a causal mask have the most keys: the longest blocks begin first.
    if (layout.causal != Causal::none) number = tiles_of_queries.bound - 1 - number;
    std::int64_t n;
    std::int64_t tile;
    if (!find_tile(layout, tiles_of_queries, number, n, tile)) return false;
    head = blockIdx.x / tiles_of_queries.bound;
    kv_head = arguments.job.kv_head(head);
    sequence = layout.sequence(n);
    query = static_cast<int>(tile) * Shape::kQueries;
    const std::int64_t last = query + Shape::kQueries < sequence.queries ? query + Shape::kQueries : sequence.queries;
    const PositionRange keys = sequence.band.keys_of(query, last - 1);
    first_tile = static_cast<int>(keys.begin / Shape::kKeys);
    tiles = keys.end <= keys.begin ? 0 : static_cast<int>((keys.end + Shape::kKeys - 1) / Shape::kKeys) - first_tile;
    keep_scale = static_cast<float>(arguments.job.dropout.scale());
    return true;
  }
};

template <class Shape>
struct ForwardMemory {
  using Queries = Tile<Shape::kQueries, Shape::kDepth>;
  using Keys = Tile<Shape::kKeys, Shape::kDepth>;

  unsigned char query[Queries::kBytes];
  unsigned char key[Shape::kStages][Keys::kBytes];
  unsigned char value[Shape::kStages][Keys::kBytes];
  ForwardBlock block;
  bool has_work;
  Barrier query_full;
  Barrier key_full[Shape::kStages];
  Barrier key_empty[Shape::kStages];
  Barrier value_full[Shape::kStages];
  Barrier value_empty[Shape::kStages];

  __device__ __forceinline__ Keys key_tile(int stage) { return {shared_address(key[stage])}; }
  __device__ __forceinline__ Keys value_tile(int stage) { return {shared_address(value[stage])}; }

  __device__ __forceinline__ void make_barriers() {
    make_barrier(query_full, Shape::kProducers);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      make_barrier(key_full[stage], Shape::kCopiers);
      make_barrier(value_full[stage], Shape::kCopiers);
      make_barrier(key_empty[stage], Shape::kGroups * Shape::kReporters);
      make_barrier(value_empty[stage], Shape::kGroups * Shape::kReporters);
    }
  }
};

// Half of the producers copy keys, the other half values (with few of them, all copy both).
template <class Machine, class Shape>
__device__ __forceinline__ void produce_forward(const AttentionJob& job, ForwardMemory<Shape>& memory) {
  using Memory = ForwardMemory<Shape>;
  const ForwardBlock& block = memory.block;
  const AttentionSequence& sequence = block.sequence;
  const std::int64_t kv_head = block.kv_head;
  {
    const auto thread = static_cast<int>(threadIdx.x);
    const RowCopier<Machine, typename Memory::Queries, Shape::kProducers, false> queries(
        job.query, sequence.batch, block.head, sequence.query_begin, sequence.queries, job.head_dim, thread);
    queries.copy({shared_address(memory.query)}, block.query, thread, memory.query_full);
  }
  const auto thread = static_cast<int>(threadIdx.x) % Shape::kCopiers;
  const int side = static_cast<int>(threadIdx.x) / Shape::kCopiers;
  using Copier = RowCopier<Machine, typename Memory::Keys, Shape::kCopiers, true>;
  // Keys beyond the key length are not read: nothing that lies there, NaN included, may count.
  const auto make = [&](const HeadTensor& tensor, std::int64_t columns) {
    return Copier(tensor, sequence.batch, kv_head, sequence.key_begin, sequence.band.keys, columns, thread);
  };
  const auto copy = [&](const Copier& copier, int t, unsigned char (&tiles)[Shape::kStages][Memory::Keys::kBytes],
                        Barrier(&full)[Shape::kStages], Barrier(&empty)[Shape::kStages]) {
    const int stage = t % Shape::kStages;
    wait(empty[stage], (t / Shape::kStages & 1) ^ 1);
    copier.copy({shared_address(tiles[stage])}, (block.first_tile + t) * Shape::kKeys, thread, full[stage]);
  };
  if constexpr (Shape::kCopiers == Shape::kProducers) {
    const Copier keys = make(job.key, job.head_dim);
    const Copier values = make(job.value, job.value_dim);
    for (int t = 0; t < block.tiles; ++t) {
      copy(keys, t, memory.key, memory.key_full, memory.key_empty);
      copy(values, t, memory.value, memory.value_full, memory.value_empty);
    }
  } else if (side == 0) {
    const Copier keys = make(job.key, job.head_dim);
    for (int t = 0; t < block.tiles; ++t) copy(keys, t, memory.key, memory.key_full, memory.key_empty);
  } else {
    const Copier values = make(job.value, job.value_dim);
    for (int t = 0; t < block.tiles; ++t) copy(values, t, memory.value, memory.value_full, memory.value_empty);
  }
}

// One group's 64 queries.
template <class Machine, class S, class Shape, Mask kMask, bool kDrops>
class ForwardGroup {
 public:
  __device__ __forceinline__ ForwardGroup(const AttentionJob& job, ForwardMemory<Shape>& memory, int group)
      : job_(job),
        block_(memory.block),
        memory_(memory),
        group_(group),
        query_(block_.query + group * kGroupRows + row_of_thread<Shape::kProducers>()),
        scores_(make_scores(job, block_, query_)),
        dropout_(job, block_.sequence, block_.head, query_) {}

  __device__ __forceinline__ void run() {
    float sum[kValues];  // of weights times values
#pragma unroll
    for (float& x : sum) x = 0;
    fusestep::cuda::wait(memory_.query_full, 0);
    if (block_.tiles > 0) {
      float score[kScores];
      std::uint32_t weight[kScores / 2];
      float correction[2];
      multiply_keys(score, 0);
      Machine::template wait<0>(score);
      release(memory_.key_empty, 0);
      to_weights(score, 0, correction);
      pack(score, weight);
      for (int t = 1; t < block_.tiles; ++t) {
        // While the tensor cores are busy with the next tile's scores and this one's values, the rest computes the
        // next tile's weights.
        Machine::hold(score);
        multiply_keys(score, t);
        multiply_values(sum, weight, t - 1);
        Machine::template wait<1>(score);
        release(memory_.key_empty, t);
        to_weights(score, t, correction);
        Machine::template wait<0>(sum);
        release(memory_.value_empty, t - 1);
#pragma unroll
        for (int i = 0; i < kValues; ++i) sum[i] *= correction[i / 2 % 2];
        pack(score, weight);
      }
      multiply_values(sum, weight, block_.tiles - 1);
      Machine::template wait<0>(sum);
    }
    store(sum);
  }

 private:
  __device__ __forceinline__ static Scores<S, kMask> make_scores(const AttentionJob& job, const ForwardBlock& block,
                                                                 int query) {
    const AttentionSequence& sequence = block.sequence;
    const KeyRange ranges[2] = {key_range(sequence, query), key_range(sequence, query + 8)};
    KeyRange inner{max_of(ranges[0].begin, ranges[1].begin), min_of(ranges[0].end, ranges[1].end)};
    for (int half = 16; half > 0; half /= 2) {  // of all rows of the warp
      inner.begin = max_of(inner.begin, __shfl_xor_sync(kWholeWarp, inner.begin, half));
      inner.end = min_of(inner.end, __shfl_xor_sync(kWholeWarp, inner.end, half));
    }
    return {job,
            sequence,
            query,
            mask_of_head(job, sequence, block.head),
            kMask == Mask::any ? alibi_slope(job, sequence.batch, block.head) : 0,
            ranges,
            inner};
  }
  __device__ __forceinline__ static int max_of(int a, int b) { return a > b ? a : b; }
  __device__ __forceinline__ static int min_of(int a, int b) { return a < b ? a : b; }

  static constexpr int kValues = Shape::kDepth / 2;
  static constexpr int kScores = Shape::kKeys / 2;

  __device__ __forceinline__ static int stage_of(int t) { return t % Shape::kStages; }
  __device__ __forceinline__ static int parity_of(int t) { return t / Shape::kStages & 1; }

  // The producers may overwrite the tile.
  __device__ __forceinline__ void release(Barrier (&empty)[Shape::kStages], int t) {
    if ((threadIdx.x - Shape::kProducers) % (kGroupThreads / Shape::kReporters) == 0) arrive(empty[stage_of(t)]);
  }

  __device__ __forceinline__ void multiply_keys(float (&score)[kScores], int t) {
    const typename ForwardMemory<Shape>::Queries queries{shared_address(memory_.query)};
    fusestep::cuda::wait(memory_.key_full[stage_of(t)], parity_of(t));
    Machine::begin();
    Machine::template scores<S, Shape::kKeys>(score, queries, group_ * kGroupRows, memory_.key_tile(stage_of(t)), 0);
    Machine::commit();
  }

  __device__ __forceinline__ void multiply_values(float (&sum)[kValues], const std::uint32_t (&weight)[kScores / 2],
                                                  int t) {
    fusestep::cuda::wait(memory_.value_full[stage_of(t)], parity_of(t));
    Machine::hold(sum);
    Machine::begin();
    Machine::template multiply_registers<S, Shape::kDepth, Shape::kKeys>(sum, weight, memory_.value_tile(stage_of(t)));
    Machine::commit();
  }

  __device__ __forceinline__ void to_weights(float (&score)[kScores], int t, float (&correction)[2]) {
    const int key = (block_.first_tile + t) * Shape::kKeys;
    scores_.template apply<Shape::kKeys>(score, key);
    softmax_.add(score, scores_.factor(), correction);
    if constexpr (kDrops) dropout_.template for_each_dropped<Shape::kKeys>(key, [&](int i) { score[i] = 0; });
  }

  __device__ __forceinline__ static void pack(const float (&score)[kScores], std::uint32_t (&weight)[kScores / 2]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) weight[i] = packed<S>(score[2 * i], score[2 * i + 1]);
  }

  __device__ __forceinline__ void store(const float (&sum)[kValues]) {
    const AttentionSequence& sequence = block_.sequence;
    softmax_.finish(scores_.factor());
    const float factor[2] = {softmax_.inverse_sum(0) * block_.keep_scale, softmax_.inverse_sum(1) * block_.keep_scale};
    const int first = block_.query + group_ * kGroupRows;
    // The group's queries, which it needs no more, make room for its results.
    const Tile<64, 64> stage{shared_address(memory_.query) + static_cast<std::uint32_t>(group_ * Tile<64, 64>::kBytes)};
    wait_for_each_other(1 + group_, kGroupThreads);
    store_rows<S, false>({job_.out, sequence.batch, block_.head, sequence.query_begin + first,
                          static_cast<int>(sequence.queries) - first, static_cast<int>(job_.value_dim)},
                         0, sum, factor, stage, static_cast<int>(threadIdx.x - Shape::kProducers) % kGroupThreads,
                         1 + group_);
    if (job_.lse.data == nullptr || threadIdx.x % 4 != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (query_ + 8 * r >= sequence.queries) continue;
      const std::int64_t row = sequence.query_begin + query_ + 8 * r;
      static_cast<float*>(job_.lse.data)[job_.lse.offset(sequence.batch, block_.head) + row * job_.lse.row] =
          softmax_.log_sum_exp(r);
    }
  }

  const AttentionJob& job_;
  const ForwardBlock& block_;
  ForwardMemory<Shape>& memory_;
  int group_;
  int query_;
  Scores<S, kMask> scores_;
  DropoutRows dropout_;
  OnlineSoftmax softmax_;
};

template <class Machine, class S, class Shape, Mask kMask, bool kDrops>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward(const __grid_constant__ AttentionArguments arguments) {
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(dynamic_shared_memory());
  if (threadIdx.x == 0) {
    memory.has_work = memory.block.template find<Shape>(arguments);
    memory.make_barriers();
  }
  __syncthreads();
  if (!memory.has_work) return;
  if (threadIdx.x < Shape::kProducers) {
    Machine::template give_registers<Shape::kProducerRegisters>();
    produce_forward<Machine, Shape>(arguments.job, memory);
    return;
  }
  Machine::template take_registers<Shape::kGroupRegisters>();
  // The same in all threads of a warp, as the compiler has to know: what it decides on is then not kept in each.
  const int group = __shfl_sync(kWholeWarp, static_cast<int>(threadIdx.x - Shape::kProducers) / kGroupThreads, 0);
  ForwardGroup<Machine, S, Shape, kMask, kDrops>(arguments.job, memory, group).run();
}

}  // namespace fusestep::cuda
