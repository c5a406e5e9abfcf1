// Compiled once for each FUSESTEP_STORAGE (CMakeLists.txt).
#include "cuda/attention/plain_tile.h"

namespace fusestep::cuda {
namespace {

constexpr int kColumnsOfThread = static_cast<int>(kMaxHeadDim) / 32;

// A block's tile of queries or of keys, of one head.
__device__ __forceinline__ bool find_block(const AttentionArguments& arguments, const Tiles& tiles,
                                           AttentionSequence& sequence, std::int64_t& head, int& first) {
  std::int64_t n;
  std::int64_t tile;
  if (!find_tile(arguments.job.layout, tiles, blockIdx.x % tiles.bound, n, tile)) return false;
  head = blockIdx.x / tiles.bound;
  sequence = arguments.job.layout.sequence(n);
  first = static_cast<int>(tile) * kPlainTile;
  return true;
}

// The last of a tile's rows that exist.
__device__ __forceinline__ std::int64_t last_of(int first, std::int64_t count) {
  return (first + kPlainTile < count ? first + kPlainTile : count) - 1;
}

// sum[i][c] += factor(i, row) * rows(begin + row, 32 c + lane) over the 32 rows of a tile, for the warp's eight i.
template <class T, class Factor, class Rows>
__device__ __forceinline__ void multiply_rows(T (&sum)[kPlainRows][kColumnsOfThread], const Factor& factor,
                                              const Rows& rows, int begin) {
  for (int row = 0; row < kPlainTile; ++row) {
    T of_row[kPlainRows];
#pragma unroll
    for (int i = 0; i < kPlainRows; ++i) of_row[i] = factor(i, row);
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      if (32 * c >= rows.columns) break;
      const T value = rows(begin + row, 32 * c + plain_lane());
#pragma unroll
      for (int i = 0; i < kPlainRows; ++i) sum[i][c] = fma(of_row[i], value, sum[i][c]);
    }
  }
}

// Rows 8 * warp to 8 * warp + 7 of a tile.
template <class T, class Rows>
__device__ __forceinline__ void store_sums(const T (&sum)[kPlainRows][kColumnsOfThread], const Rows& rows, int first,
                                           T factor) {
#pragma unroll
  for (int i = 0; i < kPlainRows; ++i) {
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      rows.set(first + plain_warp() * kPlainRows + i, 32 * c + plain_lane(), sum[i][c] * factor);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kPlainThreads, 1)
    plain_forward(const __grid_constant__ AttentionArguments arguments) {
  using T = typename Wide<S>::type;
  auto& memory = *reinterpret_cast<PlainMemory<T>*>(dynamic_shared_memory());
  const AttentionJob& job = arguments.job;
  AttentionSequence sequence;
  std::int64_t head;
  int query;
  if (!find_block(arguments, arguments.query_tiles, sequence, head, query)) return;
  const std::int64_t kv_head = job.kv_head(head);
  const PlainRows<const S> queries(job.query, sequence.batch, head, sequence.query_begin, sequence.queries,
                                   job.head_dim);
  const PlainRows<const S> keys(job.key, sequence.batch, kv_head, sequence.key_begin, sequence.band.keys, job.head_dim);
  const PlainRows<const S> values(job.value, sequence.batch, kv_head, sequence.key_begin, sequence.band.keys,
                                  job.value_dim);
  const PlainScores<S> scores(job, sequence, head, query + own_query());
  T sum[kPlainRows][kColumnsOfThread] = {};
  T highest = minus_infinity<T>();  // of the thread's query
  T total = 0;
  const PositionRange range = sequence.band.keys_of(query, last_of(query, sequence.queries));
  for (int key = static_cast<int>(range.begin) / kPlainTile * kPlainTile; key < range.end; key += kPlainTile) {
    multiply_tiles(
        memory, memory.weight, [&](int r, int d) { return queries(query + r, d); },
        [&](int r, int d) { return keys(key + r, d); }, queries.columns);
    __syncwarp();
    T score[8];
    T greatest = highest;
    for (int i = 0; i < 8; ++i) {
      T slope;
      score[i] = scores(memory.weight[own_query()][own_keys() + i], key + own_keys() + i, slope);
      greatest = max(greatest, score[i]);
    }
    greatest = max(greatest, __shfl_xor_sync(kWholeWarp, greatest, 1));
    greatest = max(greatest, __shfl_xor_sync(kWholeWarp, greatest, 2));
    const T base = greatest == minus_infinity<T>() ? T(0) : greatest;
    const T correction = power_of_two(highest - base);
    highest = greatest;
    const auto words = scores.words(key + own_keys());
    T of_tile = 0;
    for (int i = 0; i < 8; ++i) {
      const T p = power_of_two(score[i] - base);
      of_tile += p;
      memory.weight[own_query()][own_keys() + i] = philox_number(words, i) >= job.dropout.threshold ? p : T(0);
    }
    total = fma(total, correction, of_tile);
    if (plain_lane() % 4 == 0) memory.of_row[own_query()] = correction;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kPlainRows; ++i) {
      const T factor = memory.of_row[plain_warp() * kPlainRows + i];
#pragma unroll
      for (int c = 0; c < kColumnsOfThread; ++c) sum[i][c] *= factor;
    }
    multiply_rows(sum, [&](int i, int row) { return memory.weight[plain_warp() * kPlainRows + i][row]; }, values, key);
  }
  total += __shfl_xor_sync(kWholeWarp, total, 1);
  total += __shfl_xor_sync(kWholeWarp, total, 2);
  const bool empty = total == 0;
  if (plain_lane() % 4 == 0) {
    memory.of_row[own_query()] = empty ? T(0) : static_cast<T>(job.dropout.scale()) / total;
    const int own = query + own_query();
    if (job.lse.data != nullptr && own < sequence.queries) {
      static_cast<T*>(job.lse.data)[job.lse.offset(sequence.batch, head) + (sequence.query_begin + own) * job.lse.row] =
          empty ? minus_infinity<T>()
                : static_cast<T>((static_cast<double>(highest) + ::log2(static_cast<double>(total))) * kLn2);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPlainRows; ++i) {
    const T factor = memory.of_row[plain_warp() * kPlainRows + i];
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) sum[i][c] *= factor;
  }
  store_sums(sum, PlainRows<S>(job.out, sequence.batch, head, sequence.query_begin, sequence.queries, job.value_dim),
             query, T(1));
}

// The gradients of the queries of a tile.
template <class S>
__global__ void __launch_bounds__(kPlainThreads, 1)
    plain_grad_query(const __grid_constant__ AttentionArguments arguments) {
  using T = typename Wide<S>::type;
  auto& memory = *reinterpret_cast<PlainMemory<T>*>(dynamic_shared_memory());
  const AttentionJob& job = arguments.job;
  AttentionSequence sequence;
  std::int64_t head;
  int query;
  if (!find_block(arguments, arguments.query_tiles, sequence, head, query)) return;
  const PlainRows<const S> keys(job.key, sequence.batch, job.kv_head(head), sequence.key_begin, sequence.band.keys,
                                job.head_dim);
  T sum[kPlainRows][kColumnsOfThread] = {};
  const PositionRange range = sequence.band.keys_of(query, last_of(query, sequence.queries));
  for (int key = static_cast<int>(range.begin) / kPlainTile * kPlainTile; key < range.end; key += kPlainTile) {
    plain_gradients<S>(arguments, memory, sequence, head, query, key);
    multiply_rows(sum, [&](int i, int row) { return memory.grad[plain_warp() * kPlainRows + i][row]; }, keys, key);
  }
  store_sums(sum,
             PlainRows<S>(arguments.grads.grad_query, sequence.batch, head, sequence.query_begin, sequence.queries,
                          job.head_dim),
             query, static_cast<T>(job.scale));
}

// The gradients of the keys or of the values of a tile, over all heads that share them.
template <class S, bool kValues>
__global__ void __launch_bounds__(kPlainThreads, 1)
    plain_grad_key(const __grid_constant__ AttentionArguments arguments) {
  using T = typename Wide<S>::type;
  auto& memory = *reinterpret_cast<PlainMemory<T>*>(dynamic_shared_memory());
  const AttentionJob& job = arguments.job;
  AttentionSequence sequence;
  std::int64_t kv_head;
  int key;
  if (!find_block(arguments, arguments.key_tiles, sequence, kv_head, key)) return;
  T sum[kPlainRows][kColumnsOfThread] = {};
  const std::int64_t heads = job.heads / job.kv_heads;
  const PositionRange range = sequence.band.queries_of(key, key + kPlainTile - 1);
  for (std::int64_t head = kv_head * heads; head < (kv_head + 1) * heads; ++head) {
    const PlainRows<const S> rows(kValues ? arguments.grads.grad_out : job.query, sequence.batch, head,
                                  sequence.query_begin, sequence.queries, kValues ? job.value_dim : job.head_dim);
    for (int query = static_cast<int>(range.begin) / kPlainTile * kPlainTile; query < range.end; query += kPlainTile) {
      plain_gradients<S>(arguments, memory, sequence, head, query, key);
      multiply_rows(
          sum,
          [&](int i, int row) {
            const int column = plain_warp() * kPlainRows + i;
            return kValues ? memory.weight[row][column] : memory.grad[row][column];
          },
          rows, query);
    }
  }
  store_sums(sum,
             PlainRows<S>(kValues ? arguments.grads.grad_value : arguments.grads.grad_key, sequence.batch, kv_head,
                          sequence.key_begin, sequence.keys, kValues ? job.value_dim : job.head_dim),
             key, kValues ? static_cast<T>(job.dropout.scale()) : static_cast<T>(job.scale));
}

// A block's part of the mask's gradient: 32 of its queries and 32 of its keys, or all of them where the mask has but
// one.
template <class S>
__global__ void __launch_bounds__(kPlainThreads, 1) grad_mask(const __grid_constant__ AttentionArguments arguments) {
  using T = typename Wide<S>::type;
  auto& memory = *reinterpret_cast<PlainMemory<T>*>(dynamic_shared_memory());
  const AttentionJob& job = arguments.job;
  const AttentionGrads& grads = arguments.grads;
  const AttentionLayout& layout = job.layout;
  const Tiles& query_tiles = arguments.query_tiles;
  const std::int64_t query_parts = grads.mask_has_query ? query_tiles.per_sequence : 1;
  const std::int64_t key_parts = grads.mask_has_key ? arguments.key_tiles.per_sequence : 1;
  std::int64_t number = blockIdx.x;
  const std::int64_t key_part = number % key_parts;
  number /= key_parts;
  const std::int64_t query_part = number % query_parts;
  number /= query_parts;
  const std::int64_t mask_head = grads.mask_has_head ? number % job.heads : 0;
  const std::int64_t mask_batch = grads.mask_has_head ? number / job.heads : number;

  T sum[8] = {};  // of the thread's query and keys
  const std::int64_t first_batch = grads.mask_has_batch ? mask_batch : 0;
  const std::int64_t last_batch = grads.mask_has_batch ? mask_batch + 1 : layout.count();
  for (std::int64_t n = first_batch; n < last_batch; ++n) {
    const AttentionSequence sequence = layout.sequence(n);
    const int queries = static_cast<int>(sequence.queries);
    const int first_query = grads.mask_has_query ? static_cast<int>(query_part) * kPlainTile : 0;
    const int end_query =
        grads.mask_has_query && first_query + kPlainTile < queries ? first_query + kPlainTile : queries;
    const std::int64_t first_head = grads.mask_has_head ? mask_head : 0;
    const std::int64_t last_head = grads.mask_has_head ? mask_head + 1 : job.heads;
    for (std::int64_t head = first_head; head < last_head; ++head) {
      for (int query = first_query; query < end_query; query += kPlainTile) {
        const PositionRange range = sequence.band.keys_of(query, last_of(query, sequence.queries));
        int key = grads.mask_has_key ? static_cast<int>(key_part) * kPlainTile
                                     : static_cast<int>(range.begin) / kPlainTile * kPlainTile;
        const std::int64_t end_key = grads.mask_has_key ? key + 1 : range.end;
        if (key >= range.end || key + kPlainTile <= range.begin) continue;
        for (; key < end_key; key += kPlainTile) {
          plain_gradients<S>(arguments, memory, sequence, head, query, key, true);
          for (int i = 0; i < 8; ++i) sum[i] += memory.grad[own_query()][own_keys() + i];
          __syncthreads();
        }
      }
    }
  }
  for (int i = 0; i < 8; ++i) memory.grad[own_query()][own_keys() + i] = sum[i];
  __syncthreads();
  // What the mask has but one of is summed up over the tile, in order.
  const AttentionSequence sequence = layout.sequence(grads.mask_has_batch ? mask_batch : 0);
  for (int i = static_cast<int>(threadIdx.x); i < kPlainTile * kPlainTile; i += kPlainThreads) {
    const int query = i / kPlainTile;
    const int key = i % kPlainTile;
    if ((!grads.mask_has_query && query > 0) || (!grads.mask_has_key && key > 0)) continue;
    const std::int64_t row = grads.mask_has_query ? query_part * kPlainTile + query : 0;
    const std::int64_t column = grads.mask_has_key ? key_part * kPlainTile + key : 0;
    if ((grads.mask_has_query && row >= sequence.queries) || (grads.mask_has_key && column >= sequence.keys)) continue;
    T total = 0;
    for (int q = query; q < (grads.mask_has_query ? query + 1 : kPlainTile); ++q) {
      for (int k = key; k < (grads.mask_has_key ? key + 1 : kPlainTile); ++k) total += memory.grad[q][k];
    }
    const HeadTensor& to = grads.grad_mask;
    const std::int64_t at = to.offset(layout.packed ? 0 : mask_batch, mask_head) +
                            (grads.mask_has_query ? sequence.query_begin + row : 0) * to.row +
                            (grads.mask_has_key ? sequence.key_begin + column : 0) * to.column;
    with_dtype(grads.grad_mask_dtype, to.data,
               [&]<class M>(M* data) { narrow(static_cast<typename Wide<M>::type>(total), data[at]); });
  }
}

}  // namespace

template <class S>
void run_plain_forward(Session& session, const AttentionArguments& arguments) {
  launch("plain_forward", plain_forward<S>, arguments.query_tiles.bound * arguments.job.heads, kPlainThreads,
         session.stream(), arguments, sizeof(PlainMemory<typename Wide<S>::type>) + 1024);
}

template <class S>
void run_plain_backward(Session& session, const AttentionArguments& arguments) {
  constexpr std::size_t kBytes = sizeof(PlainMemory<typename Wide<S>::type>) + 1024;
  const AttentionGrads& grads = arguments.grads;
  const std::int64_t key_blocks = arguments.key_tiles.bound * arguments.job.kv_heads;
  if (grads.grad_query.data != nullptr) {
    launch("plain_grad_query", plain_grad_query<S>, arguments.query_tiles.bound * arguments.job.heads, kPlainThreads,
           session.stream(), arguments, kBytes);
  }
  if (grads.grad_key.data != nullptr) {
    launch("plain_grad_key", plain_grad_key<S, false>, key_blocks, kPlainThreads, session.stream(), arguments, kBytes);
  }
  if (grads.grad_value.data != nullptr) {
    launch("plain_grad_value", plain_grad_key<S, true>, key_blocks, kPlainThreads, session.stream(), arguments, kBytes);
  }
}

template <class S>
void run_grad_mask(Session& session, const AttentionArguments& arguments) {
  const AttentionGrads& grads = arguments.grads;
  const std::int64_t blocks = (grads.mask_has_batch ? arguments.job.layout.count() : 1) *
                              (grads.mask_has_head ? arguments.job.heads : 1) *
                              (grads.mask_has_query ? arguments.query_tiles.per_sequence : 1) *
                              (grads.mask_has_key ? arguments.key_tiles.per_sequence : 1);
  launch("grad_mask", grad_mask<S>, blocks, kPlainThreads, session.stream(), arguments,
         sizeof(PlainMemory<typename Wide<S>::type>) + 1024);
}

template void run_plain_forward<FUSESTEP_STORAGE>(Session&, const AttentionArguments&);
template void run_plain_backward<FUSESTEP_STORAGE>(Session&, const AttentionArguments&);
template void run_grad_mask<FUSESTEP_STORAGE>(Session&, const AttentionArguments&);

}  // namespace fusestep::cuda
