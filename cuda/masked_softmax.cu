// The masked softmax. Of a row of up to 8,192 keys every thread keeps its groups of keys in registers, so that memory
// is read once. Longer rows are read twice.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/masked_softmax.h"
#include "cuda/memory.h"
#include "cuda/row_threads.h"
#include "cuda/softmax_row.h"
#include "cuda/values.h"

namespace fusestep::cuda {
namespace {

constexpr int kColumnThreads = 128;

struct SoftmaxArguments {
  SoftmaxJob job;  // its bands on the device
  SoftmaxGrads grads;
  void* mean;            // [rows]: of the backward pass, the sum of p * gradient
  void* row_sum;         // [rows]: the sum of the gradient with the mask, where the mask has no key dimension
  void* partial;         // [blocks][mask columns]; nullptr: each mask row has one block
  bool writes_mask;      // the rows themselves write the mask's gradient
  unsigned row_threads;  // that share a row that is kept in registers
};

constexpr int kMostRowThreads = 256;
constexpr int kLeastBlockThreads = 128;  // of a block: several rows, where a row has fewer
constexpr int kKeptThreads = 512;        // of the kernels that keep rows, that a multiprocessor holds at a time

// Where the threads of a row that is kept in registers find their keys.
struct KeptRow {
  RowThreads threads;
  std::int64_t number;

  __device__ __forceinline__ explicit KeptRow(unsigned row_threads)
      : threads(static_cast<int>(row_threads)),
        number(static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / row_threads) + threadIdx.x / row_threads) {}

  // The first key of this thread's group g.
  __device__ __forceinline__ std::int64_t key(int g) const {
    return (g * threads.count() + threads.index()) * static_cast<std::int64_t>(kGroup);
  }
};

constexpr int kLongRowThreads = 256;
__device__ __forceinline__ RowThreads long_row_threads() { return RowThreads(kLongRowThreads); }

// Calls group(first key) for this thread's groups of a long row.
template <class Group>
__device__ __forceinline__ void for_each_group(std::int64_t begin, std::int64_t end, const Group& group) {
  const std::int64_t first = begin / kGroup * kGroup;
#pragma unroll 1
  for (std::int64_t key = first + long_row_threads().index() * kGroup; key < end; key += kLongRowThreads * kGroup)
    group(key);
}

// Scores minus this are powers that are at most 1. 0 where nothing is included, so that those powers are 0.
template <class T>
__device__ __forceinline__ T subtracted(T highest) {
  return highest == minus_infinity<T>() ? T(0) : highest;
}

// What is left of a row when the greatest score and the sum of powers are known.
template <class S>
struct ForwardEnd {
  using T = typename Wide<S>::type;
  const SoftmaxRow<S>& row;
  RowElements<S> out;
  T factor;

  __device__ __forceinline__ ForwardEnd(const SoftmaxRow<S>& r, T highest, T sum, int thread)
      : row(r), out(r.job.out, static_cast<S*>(r.job.out.data), r.at) {
    const bool empty = sum == 0;
    factor = empty ? T(0) : static_cast<T>(row.job.dropout.scale()) / sum;
    if (thread != 0) return;
    static_cast<T*>(row.job.lse.data)[row_offset(row.job.lse, row.at)] =
        empty ? minus_infinity<T>()
              : static_cast<T>((static_cast<double>(highest) + ::log2(static_cast<double>(sum))) * kLn2);
  }

  __device__ __forceinline__ void write(std::int64_t first, T (&power)[kGroup]) const {
    const unsigned kept = row.kept(first);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) power[i] = (kept >> i & 1) != 0 ? power[i] * factor : T(0);
    out.write(first, row.count(first), power);
  }
};

template <class S, int kGroups>
__global__ void __launch_bounds__(kMostRowThreads, kKeptThreads / kMostRowThreads)
    softmax_forward(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const KeptRow kept(arguments.row_threads);
  if (kept.number >= job.rows()) return;  // all threads of the row
  const SoftmaxRow<S> row(job, position_of_row(job, kept.number));
  T power[kGroups][kGroup];
  T highest = minus_infinity<T>();
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    row.read_scores(kept.key(g), power[g]);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) highest = max(highest, power[g][i]);
  }
  highest = kept.threads.greatest(highest);
  T sum = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      power[g][i] = power_of_two(power[g][i] - subtracted(highest));
      sum += power[g][i];
    }
  }
  sum = kept.threads.sum(sum);
  const ForwardEnd<S> end(row, highest, sum, kept.threads.index());
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (kept.key(g) < job.keys) end.write(kept.key(g), power[g]);
  }
}

template <class S>
__global__ void __launch_bounds__(kLongRowThreads, sizeof(S) == 8 ? 1 : 2)
    softmax_forward_long(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const SoftmaxRow<S> row(job, position_of_row(job, blockIdx.x));
  T highest = minus_infinity<T>();
  T sum = 0;
  for_each_group(row.range.begin, row.range.end, [&](std::int64_t first) {
    T score[kGroup];
    row.read_scores(first, score);
    T both = highest;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) both = max(both, score[i]);
    sum *= power_of_two(subtracted(highest) - subtracted(both));
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum += power_of_two(score[i] - subtracted(both));
    highest = both;
  });
  const T of_all = long_row_threads().greatest(highest);
  sum = long_row_threads().sum(sum * power_of_two(subtracted(highest) - subtracted(of_all)));
  const ForwardEnd<S> end(row, of_all, sum, long_row_threads().index());
  for_each_group(0, job.keys, [&](std::int64_t first) {
    T power[kGroup];
    row.read_scores(first, power);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) power[i] = power_of_two(power[i] - subtracted(of_all));
    end.write(first, power);
  });
}

// A mask's gradient is of a dtype of its own.
template <class T>
__device__ __forceinline__ void write_mask(const SoftmaxGrads& grads, const SoftmaxPosition& at, std::int64_t first,
                                           std::int64_t columns, const T (&value)[kGroup]) {
  const int count = columns - first < kGroup ? static_cast<int>(columns - first) : kGroup;
  with_dtype(grads.grad_mask_dtype, grads.grad_mask.data,
             [&]<class M>(M* data) { RowElements<M>(grads.grad_mask, data, at).write(first, count, value); });
}

// A row of the backward pass: where its gradients come from and where they go.
template <class S>
struct BackwardRow {
  using T = typename Wide<S>::type;
  const SoftmaxArguments& arguments;
  SoftmaxRow<S> row;
  RowElements<const S> grad_out;
  RowElements<S> grad_scores;
  T lse_base2;

  __device__ __forceinline__ BackwardRow(const SoftmaxArguments& a, const SoftmaxPosition& at)
      : arguments(a),
        row(a.job, at),
        grad_out(a.grads.grad_out, static_cast<const S*>(a.grads.grad_out.data), at),
        grad_scores(a.grads.grad_scores, static_cast<S*>(a.grads.grad_scores.data), at),
        lse_base2(row.lse() * static_cast<T>(kLog2E)) {
    if (lse_base2 == minus_infinity<T>()) row.range = {0, 0};  // a row without keys: all gradients are zeros
  }

  __device__ __forceinline__ void read(std::int64_t first, T (&p)[kGroup], T (&grad)[kGroup]) const {
    row.read_gradients(grad_out, first, lse_base2, p, grad);
  }

  // Returns the sum of the group's gradients with the mask.
  __device__ __forceinline__ T write(std::int64_t first, const T (&p)[kGroup], T (&grad)[kGroup], T mean) const {
    T sum = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      grad[i] = p[i] * (grad[i] - mean);
      sum += grad[i];
    }
    if (arguments.writes_mask) write_mask(arguments.grads, row.at, first, row.job.keys, grad);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) grad[i] *= static_cast<T>(row.job.scale);
    grad_scores.write(first, row.count(first), grad);
    return sum;
  }

  // For the kernels below, which sum up what the mask's elements get.
  __device__ __forceinline__ void keep(const RowThreads& threads, std::int64_t number, T mean, T sum) const {
    if (arguments.row_sum != nullptr) sum = threads.sum(sum);
    if (threads.index() != 0) return;
    if (arguments.mean != nullptr) static_cast<T*>(arguments.mean)[number] = mean;
    if (arguments.row_sum != nullptr) static_cast<T*>(arguments.row_sum)[number] = sum;
  }
};

template <class S, int kGroups>
__global__ void __launch_bounds__(kMostRowThreads, kKeptThreads / kMostRowThreads)
    softmax_backward(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const KeptRow kept(arguments.row_threads);
  if (kept.number >= job.rows()) return;  // all threads of the row
  const BackwardRow<S> row(arguments, position_of_row(job, kept.number));
  T p[kGroups][kGroup];
  T grad[kGroups][kGroup];
  T mean = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    row.read(kept.key(g), p[g], grad[g]);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) mean = fma(p[g][i], grad[g][i], mean);
  }
  mean = kept.threads.sum(mean);
  T sum = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (kept.key(g) < job.keys) sum += row.write(kept.key(g), p[g], grad[g], mean);
  }
  row.keep(kept.threads, kept.number, mean, sum);
}

template <class S>
__global__ void __launch_bounds__(kLongRowThreads, sizeof(S) == 8 ? 1 : 2)
    softmax_backward_long(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const BackwardRow<S> row(arguments, position_of_row(arguments.job, blockIdx.x));
  T p[kGroup];
  T grad[kGroup];
  T mean = 0;
  T sum = 0;
  // Two passes through one loop: with two copies of what reads a group, float64 does not fit into the registers.
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    for_each_group(0, arguments.job.keys, [&](std::int64_t first) {
      row.read(first, p, grad);
      if (pass == 1) {
        sum += row.write(first, p, grad, mean);
        return;
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) mean = fma(p[i], grad[i], mean);
    });
    if (pass == 0) mean = long_row_threads().sum(mean);
  }
  row.keep(long_row_threads(), blockIdx.x, mean, sum);
}

// The group of columns of a mask's gradient that a thread sums up, of one block of rows or of one mask row.
struct MaskColumns {
  static constexpr std::int64_t kOfBlock = kColumnThreads * kGroup;
  std::int64_t block;
  std::int64_t first;

  __device__ __forceinline__ explicit MaskColumns(const SoftmaxBlocks& blocks)
      : block(blockIdx.x / chunks(blocks)), first(blockIdx.x % chunks(blocks) * kOfBlock + threadIdx.x * kGroup) {}

  static FUSESTEP_HD std::int64_t chunks(const SoftmaxBlocks& blocks) {
    return (blocks.mask_columns + kOfBlock - 1) / kOfBlock;
  }
};

// A block of members of one mask row: a thread adds up a group of columns of theirs; a single column, where the mask
// has no key dimension.
template <class S>
__global__ void __launch_bounds__(kColumnThreads, 1)
    softmax_mask_sums(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const SoftmaxBlocks blocks(job, arguments.grads);
  const MaskColumns columns(blocks);
  if (columns.first >= blocks.mask_columns) return;
  const std::int64_t mask_row = columns.block / blocks.per_mask_row;
  const std::int64_t begin = columns.block % blocks.per_mask_row * kSoftmaxBlock;
  const std::int64_t end = begin + kSoftmaxBlock < blocks.members ? begin + kSoftmaxBlock : blocks.members;
  T sum[kGroup] = {};
  for (std::int64_t member = begin; member < end; ++member) {
    const SoftmaxPosition at = blocks.position(mask_row, member);
    const std::int64_t number = number_of_row(job, at);
    if (arguments.row_sum != nullptr) {
      sum[0] += static_cast<const T*>(arguments.row_sum)[number];
      continue;
    }
    const BackwardRow<S> row(arguments, at);
    const T mean = static_cast<const T*>(arguments.mean)[number];
    T p[kGroup];
    T grad[kGroup];
    row.read(columns.first, p, grad);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[i] += p[i] * (grad[i] - mean);
  }
  if (arguments.partial == nullptr) {
    write_mask(arguments.grads, blocks.position(mask_row, 0), columns.first, blocks.mask_columns, sum);
    return;
  }
  T* const partial = static_cast<T*>(arguments.partial) + columns.block * blocks.mask_columns + columns.first;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (columns.first + i < blocks.mask_columns) partial[i] = sum[i];
  }
}

// The blocks' sums in the order of the blocks.
template <class S>
__global__ void __launch_bounds__(kColumnThreads, 1)
    softmax_mask_combine(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxBlocks blocks(arguments.job, arguments.grads);
  const MaskColumns columns(blocks);
  if (columns.first >= blocks.mask_columns) return;
  const std::int64_t mask_row = columns.block;
  const T* partial = static_cast<const T*>(arguments.partial) + mask_row * blocks.per_mask_row * blocks.mask_columns;
  T sum[kGroup] = {};
  for (std::int64_t block = 0; block < blocks.per_mask_row; ++block) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const std::int64_t column = columns.first + i;
      if (column < blocks.mask_columns) sum[i] += partial[block * blocks.mask_columns + column];
    }
  }
  write_mask(arguments.grads, blocks.position(mask_row, 0), columns.first, blocks.mask_columns, sum);
}

SoftmaxArguments make_arguments(Session& session, const SoftmaxJob& job) {
  SoftmaxArguments arguments{};
  arguments.job = job;
  Bytes table;
  append(table, job.bands, static_cast<std::size_t>(job.batch));
  arguments.job.bands = at<Band>(session.table(table), 0);
  return arguments;
}

// Calls launch_kept(the groups of keys that each thread keeps, threads of a row), as few as hold a row, or
// launch_long(). float64 is for checking gradients: it has but the kernels for rows of any length.
template <class S, class LaunchKept, class LaunchLong>
void with_row_shape(std::int64_t keys, const LaunchKept& launch_kept, const LaunchLong& launch_long) {
  if constexpr (sizeof(S) < sizeof(double)) {
    constexpr int kGroups = 4;
    if (keys <= 32 * kGroup) return launch_kept(std::integral_constant<int, 1>{}, 32);
    for (const int threads : {32, 128, kMostRowThreads}) {
      if (keys <= threads * kGroups * kGroup) return launch_kept(std::integral_constant<int, kGroups>{}, threads);
    }
  }
  launch_long();
}

template <class Kernel>
void launch_kept_rows(const char* name, Kernel kernel, cudaStream_t stream, SoftmaxArguments arguments, int threads) {
  arguments.row_threads = static_cast<unsigned>(threads);
  const int block_threads = std::max(threads, kLeastBlockThreads);
  const std::int64_t rows_per_block = block_threads / threads;
  launch(name, kernel, (arguments.job.rows() + rows_per_block - 1) / rows_per_block, block_threads, stream, arguments);
}

}  // namespace

void run_masked_softmax_forward(const SoftmaxJob& job, const Stream& stream) {
  if (job.rows() == 0) return;
  Session session(stream);
  const SoftmaxArguments arguments = make_arguments(session, job);
  with_element_type(job.dtype, [&]<class S>(S) {
    with_row_shape<S>(
        job.keys,
        [&]<int kGroups>(std::integral_constant<int, kGroups>, int threads) {
          launch_kept_rows("softmax_forward", softmax_forward<S, kGroups>, session.stream(), arguments, threads);
        },
        [&] {
          launch("softmax_forward_long", softmax_forward_long<S>, job.rows(), kLongRowThreads, session.stream(),
                 arguments);
        });
  });
  session.finish();
}

void run_masked_softmax_backward(const SoftmaxJob& job, const SoftmaxGrads& grads, const Stream& stream) {
  const SoftmaxBlocks blocks(job, grads);
  const std::int64_t mask_elements = grads.grad_mask.data != nullptr ? blocks.mask_rows * blocks.mask_columns : 0;
  if (job.rows() == 0 && mask_elements == 0) return;
  Session session(stream);
  SoftmaxArguments arguments = make_arguments(session, job);
  arguments.grads = grads;
  arguments.writes_mask = mask_elements > 0 && blocks.members == 1 && grads.mask_has[3];
  const bool sums_up = mask_elements > 0 && !arguments.writes_mask;
  if (sums_up) {
    const std::size_t itemsize = job.dtype == DType::float64 ? sizeof(double) : sizeof(float);
    const auto rows = static_cast<std::size_t>(job.rows());
    const bool combines = blocks.per_mask_row > 1;
    const auto partials = static_cast<std::size_t>(combines ? blocks.count() * blocks.mask_columns : 0);
    unsigned char* memory = session.scratch((rows + partials) * itemsize + 1);
    (grads.mask_has[3] ? arguments.mean : arguments.row_sum) = memory;
    if (combines) arguments.partial = memory + rows * itemsize;
  }
  const std::int64_t chunks = MaskColumns::chunks(blocks);
  with_element_type(job.dtype, [&]<class S>(S) {
    with_row_shape<S>(
        job.keys,
        [&]<int kGroups>(std::integral_constant<int, kGroups>, int threads) {
          launch_kept_rows("softmax_backward", softmax_backward<S, kGroups>, session.stream(), arguments, threads);
        },
        [&] {
          launch("softmax_backward_long", softmax_backward_long<S>, job.rows(), kLongRowThreads, session.stream(),
                 arguments);
        });
    if (!sums_up) return;
    launch("softmax_mask_sums", softmax_mask_sums<S>, blocks.count() * chunks, kColumnThreads, session.stream(),
           arguments);
    if (blocks.per_mask_row != 1) {  // also where it is 0: a mask row without members has a gradient of zeros
      launch("softmax_mask_combine", softmax_mask_combine<S>, blocks.mask_rows * chunks, kColumnThreads,
             session.stream(), arguments);
    }
  });
  session.finish();
}

}  // namespace fusestep::cuda
