// The backward pass on tensor cores: the gradients of query, key and value by five products for each tile.
//
// A block of threads holds a tile of keys and values, 64 for each of its groups, and visits the tiles of 64 queries
// that attend to them, for each head that shares the keys. Scores lie as in the forward pass, queries down and keys
// across, so masks and dropout are the same code. Weights and the gradients of scores go through shared memory, where
// the tensor cores read them transposed. Gradients of keys and values stay in registers to the end. The gradient of a
// tile of queries is summed up in global memory over all blocks that visit it, in the order that turns.h fixes; the
// last block writes the result.
#pragma once

#include <cstddef>

#include "cuda/attention/dropout.h"
#include "cuda/attention/products.h"
#include "cuda/attention/scores.h"
#include "cuda/attention/shapes.h"
#include "cuda/attention/store.h"
#include "cuda/attention/turns.h"

namespace fusestep::cuda {

// The part of the work that a block of threads has. It lies in shared memory: registers are few.
template <class Shape>
struct BackwardBlock {
  using Order = Turns<Shape::kQueries, Shape::kKeys>;

  AttentionSequence sequence;
  Order order;
  Order order_before;  // of the unit that used the sums' slot before
  typename Order::Visit visit;
  std::int64_t kv_head;
  std::int64_t unit;        // (part, key head), and the row of a batch: their blocks add to the same sums
  std::int64_t first_tile;  // of the sequence's tiles of queries, among those of a head of the unit
  int tile;                 // of keys
  int part;                 // of the columns
  int heads;                // that share the keys
  int steps;                // tiles of queries of all these heads
  float keep_scale;         // dropout's
  bool exists;

  __device__ __forceinline__ void find(const AttentionArguments& arguments) {
    const AttentionLayout& layout = arguments.job.layout;
    const Tiles& tiles = arguments.key_tiles;
    const std::int64_t ticket = atomicAdd(arguments.query_sums.ticket, 1u);
    const std::int64_t head_part = ticket / tiles.bound;
    kv_head = head_part % arguments.job.kv_heads;
    part = static_cast<int>(head_part / arguments.job.kv_heads);
    std::int64_t n;
    std::int64_t in_order;
    exists = find_tile(layout, tiles, ticket % tiles.bound, n, in_order);
    if (!exists) return;
    sequence = layout.sequence(n);
    unit = layout.packed ? head_part : head_part * layout.batch + n;
    first_tile = layout.packed ? arguments.query_tiles.before[n] : 0;
    order.begin(sequence, arguments.query_sums.resident);
    const std::int64_t before = unit - arguments.query_sums.slots;
    if (before >= 0)
      order_before.begin(layout.sequence(layout.packed ? n : before % layout.batch), arguments.query_sums.resident);
    // All tiles of the sequence, beyond the key length too: their gradients are zeros.
    const auto count = static_cast<int>((sequence.keys + Shape::kKeys - 1) / Shape::kKeys);
    tile = order.rotates() ? static_cast<int>(in_order) : count - 1 - static_cast<int>(in_order);
    visit = order.visit(tile);
    heads = static_cast<int>(arguments.job.heads / arguments.job.kv_heads);
    steps = heads * (visit.end - visit.begin);
    keep_scale = static_cast<float>(arguments.job.dropout.scale());
  }
};

// What a block does next: one tile of queries of one head. It is worked out by the producers: a division of 64-bit
// numbers is a function call, and the groups have no registers to spare for that.
struct BackwardStep {
  std::int64_t head;
  int query;         // its first one
  const char* mask;  // of mask_of_head
  double slope;      // ALiBi's
  KeyRange inner;    // the keys that all of its queries attend to
  // The gradient of the queries: where it is summed up (nullptr: this block alone computes it), and whether this block
  // begins or ends the sum.
  float* sums;
  bool first;
  bool last;
  // Of each group: the number to wait for and what it has to be; the number to raise afterwards, to what.
  const std::uint32_t* awaited;
  std::uint32_t awaited_value;
  std::uint32_t* turn;
  std::uint32_t turn_value;
};

// Of each query of a tile.
struct alignas(16) BackwardRow {
  float lse;    // in base 2; of rows without keys so large that all weights become 0
  float delta;  // sum(grad_out * out)
  KeyRange keys;
};

template <class Shape>
struct BackwardMemory {
  using Keys = Tile<Shape::kKeys, Shape::kDepth>;
  using Queries = Tile<Shape::kQueries, Shape::kDepth>;
  using Scores = Tile < Shape::kQueries, Shape::kKeys<64 ? 64 : Shape::kKeys>;

  unsigned char key[Keys::kBytes];
  unsigned char value[Keys::kBytes];
  unsigned char query[Shape::kStages][Queries::kBytes];
  unsigned char grad_out[Shape::kStages][Queries::kBytes];
  unsigned char weight[Scores::kBytes];
  unsigned char grad_score[Shape::kScoreTiles][Scores::kBytes];
  BackwardBlock<Shape> block;
  BackwardStep step[Shape::kStages];
  BackwardRow row[Shape::kStages][Shape::kQueries];
  Barrier key_full;
  Barrier query_full[Shape::kStages];
  Barrier grad_out_full[Shape::kStages];
  Barrier empty[Shape::kStages];

  __device__ __forceinline__ void make_barriers() {
    make_barrier(key_full, 2 * Shape::kCopiers);  // keys and values
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      make_barrier(query_full[stage], 2 * Shape::kCopiers);  // queries, and what is known of them
      make_barrier(grad_out_full[stage], Shape::kCopiers);
      make_barrier(empty[stage], kGroupThreads / 32 * Shape::kGroups);  // a warp each
    }
  }
};

// The tiles of a memory that begins at an address.
template <class Shape>
struct BackwardTiles {
  using Memory = BackwardMemory<Shape>;
  std::uint32_t address;

  __device__ __forceinline__ typename Memory::Keys key() const {
    return {address + static_cast<std::uint32_t>(offsetof(Memory, key))};
  }
  __device__ __forceinline__ typename Memory::Keys value() const {
    return {address + static_cast<std::uint32_t>(offsetof(Memory, value))};
  }
  __device__ __forceinline__ typename Memory::Queries query(int stage) const {
    return {address + static_cast<std::uint32_t>(offsetof(Memory, query) + stage * Memory::Queries::kBytes)};
  }
  __device__ __forceinline__ typename Memory::Queries grad_out(int stage) const {
    return {address + static_cast<std::uint32_t>(offsetof(Memory, grad_out) + stage * Memory::Queries::kBytes)};
  }
  __device__ __forceinline__ typename Memory::Scores weight() const {
    return {address + static_cast<std::uint32_t>(offsetof(Memory, weight))};
  }
  __device__ __forceinline__ typename Memory::Scores grad_score(int t) const {
    return {address + static_cast<std::uint32_t>(offsetof(Memory, grad_score) + t * Memory::Scores::kBytes)};
  }
};

__device__ __forceinline__ BackwardRow make_row(const AttentionArguments& arguments, const AttentionSequence& sequence,
                                                std::int64_t head, int query) {
  BackwardRow row{INFINITY, 0, key_range(sequence, query)};
  if (query >= sequence.queries) return row;
  const HeadTensor& lse = arguments.job.lse;
  const std::int64_t at = sequence.query_begin + query;
  const float natural = static_cast<const float*>(lse.data)[lse.offset(sequence.batch, head) + at * lse.row];
  if (natural != -INFINITY) row.lse = natural * static_cast<float>(kLog2E);
  row.delta = static_cast<const float*>(arguments.delta)[arguments.delta_at(sequence.batch, head, at)];
  return row;
}

template <class Shape>
__device__ __forceinline__ BackwardStep make_step(const AttentionArguments& arguments,
                                                  const BackwardBlock<Shape>& block, std::int64_t head, int of_group,
                                                  int tile) {
  const AttentionJob& job = arguments.job;
  const QuerySums& sums = arguments.query_sums;
  const int query = tile * Shape::kQueries;
  const int last_query = query + Shape::kQueries - 1;
  const int before = block.order.before(block.tile, tile);
  const int count = block.order.count(tile);
  const std::int64_t place = of_group * (sums.tiles / block.heads) + block.first_tile + tile;
  const auto turn_of = [&](std::int64_t unit) { return sums.turns + (unit * sums.tiles + place) * Shape::kGroups; };
  BackwardStep step{};
  step.head = head;
  step.query = query;
  step.mask = mask_of_head(job, block.sequence, head);
  step.slope = alibi_slope(job, block.sequence.batch, head);
  // Ranges begin and end later from query to query. The last query may not exist: then no key is inner.
  step.inner = {key_range(block.sequence, last_query).begin,
                last_query < block.sequence.queries ? key_range(block.sequence, query).end : 0};
  step.first = before == 0;
  step.last = before + 1 == count;
  step.turn = turn_of(block.unit);
  step.turn_value = static_cast<std::uint32_t>(before) + 1;
  if (arguments.grads.grad_query.data == nullptr) step.last = false;  // nobody writes it
  if (arguments.grads.grad_query.data == nullptr || count == 1) return step;
  constexpr int kOfTile = Shape::kQueries * Shape::kColumns;
  step.sums = sums.sums + (block.unit % sums.slots * sums.tiles + place) * kOfTile;
  step.awaited = step.turn;
  step.awaited_value = static_cast<std::uint32_t>(before);
  if (step.first && block.unit >= sums.slots) {
    // What lay in the same place has to be used up.
    const int others = block.order_before.count(tile);
    step.awaited = turn_of(block.unit - sums.slots);
    step.awaited_value = others > 1 ? static_cast<std::uint32_t>(others) : 0;
  }
  return step;
}

// Half of the producers copy queries, the other half gradients of the result and what is known of the rows (with few of
// them, all do both).
template <class Machine, class Shape>
__device__ __forceinline__ void produce_backward(const AttentionArguments& arguments, BackwardMemory<Shape>& memory) {
  using Memory = BackwardMemory<Shape>;
  const AttentionJob& job = arguments.job;
  const BackwardBlock<Shape>& block = memory.block;
  const AttentionSequence& sequence = block.sequence;
  const BackwardTiles<Shape> tile_at{shared_address(&memory)};
  if (block.steps == 0) return;
  const auto thread = static_cast<int>(threadIdx.x) % Shape::kCopiers;
  const bool first_side = static_cast<int>(threadIdx.x) < Shape::kCopiers;
  const bool last_side = Shape::kCopiers == Shape::kProducers || !first_side;
  using KeyCopier = RowCopier<Machine, typename Memory::Keys, Shape::kCopiers, true>;
  const auto copy_keys = [&](const HeadTensor& tensor, std::int64_t columns, const typename Memory::Keys& tile) {
    const KeyCopier copier(tensor, sequence.batch, block.kv_head, sequence.key_begin, sequence.band.keys, columns,
                           thread);
    copier.copy(tile, block.tile * Shape::kKeys, thread, memory.key_full);
  };
  if (first_side) copy_keys(job.key, job.head_dim, tile_at.key());
  if (last_side) copy_keys(job.value, job.value_dim, tile_at.value());
  const int tiles = block.visit.end - block.visit.begin;
  using Copier = RowCopier<Machine, typename Memory::Queries, Shape::kCopiers, false>;
  int step = 0;
  for (int of_group = 0; of_group < block.heads; ++of_group) {
    const std::int64_t head = block.kv_head * block.heads + of_group;
    for (int t = 0; t < tiles; ++t, ++step) {
      const int stage = step % Shape::kStages;
      wait(memory.empty[stage], (step / Shape::kStages & 1) ^ 1);
      const int tile = block.order.at_step(block.tile, block.visit, t);
      const int query = tile * Shape::kQueries;
      const auto copy = [&](const HeadTensor& tensor, std::int64_t columns, const typename Memory::Queries& to,
                            Barrier& full) {
        const Copier copier(tensor, sequence.batch, head, sequence.query_begin, sequence.queries, columns, thread);
        copier.copy(to, query, thread, full);
      };
      if (last_side) {
        for (int i = thread; i < Shape::kQueries; i += Shape::kCopiers) {
          memory.row[stage][i] = make_row(arguments, sequence, head, query + i);
        }
        if (thread == 0) memory.step[stage] = make_step<Shape>(arguments, block, head, of_group, tile);
        arrive(memory.query_full[stage]);
      }
      if (first_side) copy(job.query, job.head_dim, tile_at.query(stage), memory.query_full[stage]);
      if (last_side)
        copy(arguments.grads.grad_out, job.value_dim, tile_at.grad_out(stage), memory.grad_out_full[stage]);
    }
  }
}

// One group's 64 keys.
template <class Machine, class S, class Shape, Mask kMask, bool kDrops>
class BackwardGroup {
 public:
  __device__ __forceinline__ BackwardGroup(const AttentionArguments& arguments, BackwardMemory<Shape>& memory,
                                           int group)
      : arguments_(arguments), job_(arguments.job), block_(memory.block), memory_(memory), group_(group) {}

  __device__ __forceinline__ void run() {
    float grad_key[kGrads];
    float grad_value[kGrads];
#pragma unroll
    for (int i = 0; i < kGrads; ++i) grad_key[i] = grad_value[i] = 0;
    if (block_.steps > 0) {
      float score[kScores];
      fusestep::cuda::wait(memory_.key_full, 0);
      if constexpr (kAhead) multiply_keys(score, 0);
      for (int t = 0; t < block_.steps; ++t) run_step(t, score, grad_key, grad_value);
      Machine::template wait<0>(score);
      finish_turn();
    }
    store(grad_key, grad_value);
  }

 private:
  static constexpr int kScores = kGroupRows / 2;
  static constexpr int kGrads = Shape::kColumns / 2;
  static constexpr int kQueryColumns =
      Shape::kColumns / Shape::kGroups;  // of the gradient of queries, that a group computes
  static constexpr int kQueryGrads = kQueryColumns / 2;
  static constexpr int kAllThreads = Shape::kGroups * kGroupThreads;
  static constexpr int kAllGroups = 15;  // number of a barrier; those of a group are 1 and on

  // While the groups add to the queries of a step, the tensor cores are busy with the next one's scores. That takes
  // another tile of queries.
  static constexpr bool kAhead = Shape::kStages > 1;

  __device__ __forceinline__ void multiply_keys(float (&score)[kScores], int t) {
    const BackwardTiles<Shape> tiles{shared_address(&memory_)};
    const int stage = t % Shape::kStages;
    fusestep::cuda::wait(memory_.query_full[stage], t / Shape::kStages & 1);
    Machine::begin();
    Machine::template scores<S, kGroupRows>(score, tiles.query(stage), 0, tiles.key(), group_ * kGroupRows);
    Machine::commit();
  }

  // score: with kAhead the products of the step's queries and keys, under way.
  __device__ __forceinline__ void run_step(int t, float (&score)[kScores], float (&grad_key)[kGrads],
                                           float (&grad_value)[kGrads]) {
    const int stage = t % Shape::kStages;
    const int parity = t / Shape::kStages & 1;
    const BackwardTiles<Shape> tiles{shared_address(&memory_)};
    float grad_weight[kScores];
    if constexpr (!kAhead) multiply_keys(score, t);
    fusestep::cuda::wait(memory_.grad_out_full[stage], parity);
    Machine::begin();
    Machine::template scores<S, kGroupRows>(grad_weight, tiles.grad_out(stage), 0, tiles.value(), group_ * kGroupRows);
    Machine::commit();

    const BackwardStep& step = memory_.step[stage];
    const int query = step.query + row_of_thread<Shape::kProducers>();
    if (t > 0) finish_turn();
    Machine::template wait<1>(score);
    const BackwardRow* const rows = &memory_.row[stage][row_of_thread<Shape::kProducers>()];  // this and 8 further
    const KeyRange ranges[2] = {rows[0].keys, rows[8].keys};
    const Scores<S, kMask> scores(job_, block_.sequence, query, step.mask, kMask == Mask::any ? step.slope : 0, ranges,
                                  step.inner);
    float slope[kMask == Mask::any ? kScores : 1];
    const int key = block_.tile * Shape::kKeys + group_ * kGroupRows;
    scores.template apply<kGroupRows>(score, key, kMask == Mask::any ? slope : nullptr);
    const float factor = scores.factor();
    const float lse[2] = {rows[0].lse, rows[8].lse};
#pragma unroll
    for (int i = 0; i < kScores; ++i) score[i] = fast_exp2(fma(score[i], factor, -lse[i / 2 % 2]));

    std::uint32_t dropped = 0;  // a bit for each
    if constexpr (kDrops) {
      const DropoutRows dropout(job_, block_.sequence, step.head, query);
      dropout.template for_each_dropped<kGroupRows>(key, [&](int i) { dropped |= 1u << i; });
    }
    const auto is_dropped = [&](int i) { return kDrops && (dropped >> i & 1u) != 0; };
    put(tiles.weight(), [&](int i) { return is_dropped(i) ? 0.0f : score[i]; });
    wait_for_each_other(1 + group_, kGroupThreads);
    Machine::hold(grad_value);
    Machine::begin();
    Machine::template multiply_transposed<S, Shape::kColumns, Shape::kQueries>(
        grad_value, tiles.weight(), group_ * kGroupRows, tiles.grad_out(stage), block_.part * Shape::kColumns);
    Machine::commit();

    Machine::template wait<1>(grad_weight);
    const float scale = block_.keep_scale;
    const float delta[2] = {rows[0].delta, rows[8].delta};
    const auto grad_score = tiles.grad_score(t % Shape::kScoreTiles);
    put(grad_score, [&](int i) {
      const float grad = is_dropped(i) ? 0.0f : kDrops ? grad_weight[i] * scale : grad_weight[i];
      const float product = score[i] * (grad - delta[i / 2 % 2]);
      return kMask == Mask::any ? product * slope[kMask == Mask::any ? i : 0] : product;
    });
    wait_for_each_other(kAllGroups, kAllThreads);
    Machine::hold(grad_key);
    Machine::begin();
    Machine::template multiply_transposed<S, Shape::kColumns, Shape::kQueries>(
        grad_key, grad_score, group_ * kGroupRows, tiles.query(stage), block_.part * Shape::kColumns);
    float grad_query[kQueryGrads];
    Machine::template multiply<S, kQueryColumns>(grad_query, grad_score, tiles.key(),
                                                 block_.part * Shape::kColumns + group_ * kQueryColumns);
    Machine::commit();
    if constexpr (kAhead) {
      // After the last step the same scores once more: no branch around what is under way.
      Machine::hold(score);
      multiply_keys(score, t + 1 < block_.steps ? t + 1 : t);
    }
    Machine::template wait<kAhead ? 1 : 0>(grad_query);
    Machine::hold(grad_key);
    Machine::hold(grad_value);
    add_to_queries(step, grad_query);
    // With one tile of gradients of scores, no group may write the next ones before all have read these.
    if constexpr (Shape::kScoreTiles == 1) wait_for_each_other(kAllGroups, kAllThreads);
    // By each warp, and when all its threads are done: besides the tiles they have read what is known of the step.
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(memory_.empty[stage]);
  }

  // Writes this thread's part of 64 x 64 numbers to the group's columns of a tile.
  template <class Get>
  __device__ __forceinline__ void put(const typename BackwardMemory<Shape>::Scores& tile, const Get& get) const {
    const auto row = static_cast<int>(opaque(static_cast<std::uint32_t>(row_of_thread<Shape::kProducers>())));
    const std::uint32_t first = tile.chunk(row, group_ * 8) + 4 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < kGroupRows / 8; ++j) {
#pragma unroll
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = 4 * j + 2 * r;
        store_shared((first ^ static_cast<std::uint32_t>(j << 4)) + 1024 * r, packed<S>(get(i), get(i + 1)));
      }
    }
    fence_for_wgmma();
  }

  __device__ __forceinline__ bool leads() const { return thread() == 0; }

  // When all that come before have added, adds too; the last one writes the result.
  __device__ __forceinline__ void add_to_queries(const BackwardStep& step, float (&grad)[kQueryGrads]) {
    turn_ = step.turn + group_;
    turn_value_ = step.turn_value;
    if (step.sums != nullptr) {
      wait_until(step.awaited + group_, step.awaited_value);
      float* const sums = step.sums + group_ * kGroupThreads * kQueryGrads + 4 * thread();
      if (step.first) {
#pragma unroll
        for (int i = 0; i < kQueryGrads; i += 4) {
          __stcg(reinterpret_cast<float4*>(sums + i * kGroupThreads),
                 float4{grad[i], grad[i + 1], grad[i + 2], grad[i + 3]});
        }
      } else if (!step.last) {
#pragma unroll
        for (int i = 0; i < kQueryGrads; i += 4) {
          add_to_global(sums + i * kGroupThreads, grad[i], grad[i + 1], grad[i + 2], grad[i + 3]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kQueryGrads; i += 4) {
          const float4 sum = __ldcg(reinterpret_cast<const float4*>(sums + i * kGroupThreads));
          grad[i] += sum.x, grad[i + 1] += sum.y, grad[i + 2] += sum.z, grad[i + 3] += sum.w;
        }
      }
    }
    if (!step.last) return;
    const AttentionSequence& sequence = block_.sequence;
    const float scale[2] = {static_cast<float>(job_.scale), static_cast<float>(job_.scale)};
    store_rows<S, false>({arguments_.grads.grad_query, sequence.batch, step.head, sequence.query_begin + step.query,
                          static_cast<int>(sequence.queries) - step.query, static_cast<int>(job_.head_dim)},
                         block_.part * Shape::kColumns + group_ * kQueryColumns, grad, scale, stage(), thread(),
                         1 + group_);
  }

  // Lets the next block add to the queries of the step before. By then what this one has added has long arrived: the
  // memory need not be waited for.
  __device__ __forceinline__ void finish_turn() {
    wait_for_each_other(1 + group_, kGroupThreads);
    if (leads()) publish(turn_, turn_value_);
  }

  __device__ __forceinline__ void store(const float (&grad_key)[kGrads], const float (&grad_value)[kGrads]) {
    const AttentionSequence& sequence = block_.sequence;
    const int first = block_.tile * Shape::kKeys + group_ * kGroupRows;
    const auto store_grad = [&](const HeadTensor& to, std::int64_t columns, const float (&grad)[kGrads], float factor) {
      if (to.data == nullptr) return;
      wait_for_each_other(1 + group_, kGroupThreads);  // the stage is in use no more
      const float factors[2] = {factor, factor};
      store_rows<S, true>({to, sequence.batch, block_.kv_head, sequence.key_begin + first,
                           static_cast<int>(sequence.keys) - first, static_cast<int>(columns)},
                          block_.part * Shape::kColumns, grad, factors, stage(), thread(), 1 + group_);
    };
    store_grad(arguments_.grads.grad_key, job_.head_dim, grad_key, static_cast<float>(job_.scale));
    store_grad(arguments_.grads.grad_value, job_.value_dim, grad_value, block_.keep_scale);
  }

  __device__ __forceinline__ static int thread() {
    return static_cast<int>(threadIdx.x - Shape::kProducers) % kGroupThreads;
  }

  // Memory for results on their way: the group's own weights, when the products have read them.
  __device__ __forceinline__ Tile<64, 64> stage() const {
    const auto weights = BackwardTiles<Shape>{shared_address(&memory_)}.weight();
    return {weights.address + static_cast<std::uint32_t>(group_ * weights.kPanelBytes)};
  }

  const AttentionArguments& arguments_;
  const AttentionJob& job_;
  const BackwardBlock<Shape>& block_;
  BackwardMemory<Shape>& memory_;
  int group_;
  std::uint32_t* turn_ = nullptr;  // that the next finish_turn() ends, and what it becomes
  std::uint32_t turn_value_ = 0;
};

template <class Machine, class S, class Shape, Mask kMask, bool kDrops>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward(const __grid_constant__ AttentionArguments arguments) {
  auto& memory = *reinterpret_cast<BackwardMemory<Shape>*>(dynamic_shared_memory());
  if (threadIdx.x == 0) {
    memory.block.find(arguments);
    memory.make_barriers();
  }
  __syncthreads();
  if (!memory.block.exists) return;
  if (threadIdx.x < Shape::kProducers) {
    Machine::template give_registers<Shape::kProducerRegisters>();
    produce_backward<Machine, Shape>(arguments, memory);
    return;
  }
  Machine::template take_registers<Shape::kGroupRegisters>();
  // The same in all threads of a warp, as the compiler has to know: what it decides on is then not kept in each.
  const int group = __shfl_sync(kWholeWarp, static_cast<int>(threadIdx.x - Shape::kProducers) / kGroupThreads, 0);
  BackwardGroup<Machine, S, Shape, kMask, kDrops>(arguments, memory, group).run();
}

}  // namespace fusestep::cuda
