// The masked softmax: a warp takes a row, a thread of it groups of eight keys, those that share a Philox call. The row
// is read twice, the second time from the cache; nothing is kept between, so that a row may have any length.
#include <cmath>

#include "cuda/launch.h"
#include "cuda/masked_softmax.h"
#include "cuda/memory.h"
#include "cuda/values.h"
#include "jobs/dropout.h"
#include "jobs/masked_softmax.h"
#include "jobs/softmax_blocks.h"
#include "math/attention/score.h"

namespace fusestep::cuda {
namespace {

constexpr int kRowsPerBlock = 4;
constexpr int kRowThreads = 32 * kRowsPerBlock;
constexpr int kColumnThreads = 128;

struct SoftmaxArguments {
  SoftmaxJob job;  // its bands on the device
  SoftmaxGrads grads;
  void* mean;        // [rows]: of the backward pass, the sum of p * gradient
  void* row_sum;     // [rows]: the sum of the gradient with the mask, where the mask has no key dimension
  void* partial;     // [blocks][mask columns]; nullptr: each mask row has one block
  bool writes_mask;  // the rows themselves write the mask's gradient
};

__device__ __forceinline__ std::int64_t row_offset(const HeadTensor& tensor, const SoftmaxPosition& at) {
  return at.batch * tensor.batch + at.head * tensor.head + at.query * tensor.row;
}

__device__ __forceinline__ SoftmaxPosition position_of(const SoftmaxJob& job, std::int64_t row) {
  return {row / job.queries / job.heads, row / job.queries % job.heads, row % job.queries};
}

__device__ __forceinline__ std::int64_t row_of(const SoftmaxJob& job, const SoftmaxPosition& at) {
  return (at.batch * job.heads + at.head) * job.queries + at.query;
}

template <class S>
struct Row {
  using T = typename Wide<S>::type;

  const SoftmaxJob& job;
  SoftmaxPosition at;
  PositionRange range;
  const S* scores;
  T scale_base2;

  __device__ __forceinline__ Row(const SoftmaxJob& j, const SoftmaxPosition& position)
      : job(j),
        at(position),
        range(j.bands[position.batch].keys_of(position.query)),
        scores(static_cast<const S*>(j.scores.data) + row_offset(j.scores, position)),
        scale_base2(static_cast<T>(j.scale * kLog2E)) {}

  // In base 2, -inf where the key is left out.
  __device__ __forceinline__ T score(std::int64_t key) const {
    if (key < range.begin || key >= range.end) return minus_infinity<T>();
    const T value = widened<T>(scores[key * job.scores.column]) * scale_base2;
    if (job.mask.data == nullptr) return value;
    const std::int64_t mask_at = row_offset(job.mask, at) + key * job.mask.column;
    if (job.mask_dtype == DType::boolean) {
      return static_cast<const std::uint8_t*>(job.mask.data)[mask_at] != 0 ? value : minus_infinity<T>();
    }
    T mask = 0;
    with_dtype(job.mask_dtype, job.mask.data, [&](const auto* data) { mask = widened<T>(data[mask_at]); });
    return add_mask<T>(value, mask);
  }

  __device__ __forceinline__ PhiloxWords<std::uint32_t> words(std::int64_t key) const {
    if (!job.dropout.drops()) return {};
    return attention_dropout_words(job.dropout, key, at.query, at.batch * job.heads + at.head);
  }

  __device__ __forceinline__ T lse() const { return static_cast<const T*>(job.lse.data)[row_offset(job.lse, at)]; }
};

// Calls group(first key) for this thread's groups of the row.
template <class Group>
__device__ __forceinline__ void for_each_group(std::int64_t begin, std::int64_t end, const Group& group) {
  const std::int64_t first = begin / kDropoutGroup * kDropoutGroup;
  for (std::int64_t key = first + threadIdx.x % 32 * kDropoutGroup; key < end; key += 32 * kDropoutGroup) group(key);
}

// The sum over the warp, in every thread of it; one order for all.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int half = 16; half > 0; half /= 2) value += __shfl_xor_sync(kWholeWarp, value, half);
  return value;
}

// The greatest score so far and the sum of the exponentials below it.
template <class T>
struct Softmax {
  T highest = minus_infinity<T>();
  T sum = 0;

  __device__ __forceinline__ void join(T other_highest, T other_sum) {
    const T both = max(highest, other_highest);
    if (both != minus_infinity<T>()) {
      sum = sum * power_of_two(highest - both) + other_sum * power_of_two(other_highest - both);
    }
    highest = both;
  }
};

template <class S>
__global__ void __launch_bounds__(kRowThreads, 1) softmax_forward(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  if (number >= job.batch * job.heads * job.queries) return;  // the whole warp
  const Row<S> row(job, position_of(job, number));
  Softmax<T> softmax;
  for_each_group(row.range.begin, row.range.end, [&](std::int64_t first) {
    T score[kDropoutGroup];
    T highest = minus_infinity<T>();
    for (int i = 0; i < kDropoutGroup; ++i) {
      score[i] = row.score(first + i);
      highest = max(highest, score[i]);
    }
    if (highest == minus_infinity<T>()) return;
    T sum = 0;
    for (int i = 0; i < kDropoutGroup; ++i) sum += power_of_two(score[i] - highest);
    softmax.join(highest, sum);
  });
  for (int half = 16; half > 0; half /= 2) {
    const T highest = __shfl_xor_sync(kWholeWarp, softmax.highest, half);
    const T sum = __shfl_xor_sync(kWholeWarp, softmax.sum, half);
    softmax.join(highest, sum);
  }

  const bool empty = softmax.sum == 0;
  if (threadIdx.x % 32 == 0) {
    const double highest = static_cast<double>(softmax.highest);
    static_cast<T*>(job.lse.data)[row_offset(job.lse, row.at)] =
        empty ? minus_infinity<T>() : static_cast<T>((highest + ::log2(static_cast<double>(softmax.sum))) * kLn2);
  }
  const T factor = empty ? T(0) : static_cast<T>(job.dropout.scale()) / softmax.sum;
  S* const out = static_cast<S*>(job.out.data) + row_offset(job.out, row.at);
  for_each_group(0, job.keys, [&](std::int64_t first) {
    const auto words = row.words(first);
    for (int i = 0; i < kDropoutGroup; ++i) {
      if (first + i >= job.keys) continue;
      const bool kept = !empty && philox_number(words, i) >= job.dropout.threshold;
      const T p = kept ? power_of_two(row.score(first + i) - softmax.highest) * factor : T(0);
      narrow(p, out[(first + i) * job.out.column]);
    }
  });
}

// p and the gradient of the dropped-out p of one key.
template <class S>
struct KeyGradient {
  using T = typename Wide<S>::type;
  T p;
  T grad;

  __device__ __forceinline__ KeyGradient(const Row<S>& row, const SoftmaxGrads& grads,
                                         const PhiloxWords<std::uint32_t>& words, std::int64_t key, T lse) {
    p = power_of_two(row.score(key) - lse * static_cast<T>(kLog2E));
    const bool in_band = key >= row.range.begin && key < row.range.end;
    const bool kept =
        in_band && philox_number(words, static_cast<int>(key % kDropoutGroup)) >= row.job.dropout.threshold;
    const S* const grad_out = static_cast<const S*>(grads.grad_out.data) + row_offset(grads.grad_out, row.at);
    grad = kept ? widened<T>(grad_out[key * grads.grad_out.column]) * static_cast<T>(row.job.dropout.scale()) : T(0);
  }
};

// A mask's gradient is of a dtype of its own.
template <class T>
__device__ __forceinline__ void write_mask(const SoftmaxGrads& grads, const SoftmaxPosition& at, std::int64_t key,
                                           T value) {
  const std::int64_t to = row_offset(grads.grad_mask, at) + key * grads.grad_mask.column;
  with_dtype(grads.grad_mask_dtype, grads.grad_mask.data,
             [&]<class M>(M* data) { narrow(static_cast<typename Wide<M>::type>(value), data[to]); });
}

template <class S>
__global__ void __launch_bounds__(kRowThreads, 1) softmax_backward(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const SoftmaxGrads& grads = arguments.grads;
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  if (number >= job.batch * job.heads * job.queries) return;  // the whole warp
  const Row<S> row(job, position_of(job, number));
  const T lse = row.lse();
  const bool empty = lse == minus_infinity<T>();
  T mean = 0;
  if (!empty) {
    for_each_group(row.range.begin, row.range.end, [&](std::int64_t first) {
      const auto words = row.words(first);
      for (int i = 0; i < kDropoutGroup; ++i) {
        if (first + i >= row.range.end) continue;
        const KeyGradient<S> key(row, grads, words, first + i, lse);
        mean = fma(key.p, key.grad, mean);
      }
    });
  }
  mean = warp_sum(mean);

  S* const to = static_cast<S*>(grads.grad_scores.data) + row_offset(grads.grad_scores, row.at);
  T sum = 0;
  for_each_group(0, job.keys, [&](std::int64_t first) {
    const auto words = row.words(first);
    for (int i = 0; i < kDropoutGroup; ++i) {
      const std::int64_t at = first + i;
      if (at >= job.keys) continue;
      T grad = 0;
      if (!empty) {
        const KeyGradient<S> key(row, grads, words, at, lse);
        grad = key.p * (key.grad - mean);
      }
      narrow(grad * static_cast<T>(job.scale), to[at * grads.grad_scores.column]);
      sum += grad;
      if (arguments.writes_mask) write_mask(grads, row.at, at, grad);
    }
  });
  if (arguments.row_sum != nullptr) sum = warp_sum(sum);
  if (threadIdx.x % 32 != 0) return;
  if (arguments.mean != nullptr) static_cast<T*>(arguments.mean)[number] = mean;
  if (arguments.row_sum != nullptr) static_cast<T*>(arguments.row_sum)[number] = sum;
}

// A block of members of one mask row: a thread adds up a column of theirs.
template <class S>
__global__ void __launch_bounds__(kColumnThreads, 1)
    softmax_mask_sums(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxJob& job = arguments.job;
  const SoftmaxGrads& grads = arguments.grads;
  const SoftmaxBlocks blocks(job, grads);
  const std::int64_t chunks = (blocks.mask_columns + kColumnThreads - 1) / kColumnThreads;
  const std::int64_t block = blockIdx.x / chunks;
  const std::int64_t column = blockIdx.x % chunks * kColumnThreads + threadIdx.x;
  if (column >= blocks.mask_columns) return;
  const std::int64_t mask_row = block / blocks.per_mask_row;
  const std::int64_t begin = block % blocks.per_mask_row * kSoftmaxBlock;
  const std::int64_t end = begin + kSoftmaxBlock < blocks.members ? begin + kSoftmaxBlock : blocks.members;
  T sum = 0;
  for (std::int64_t member = begin; member < end; ++member) {
    const SoftmaxPosition at = blocks.position(mask_row, member);
    const std::int64_t number = row_of(job, at);
    if (arguments.row_sum != nullptr) {
      sum += static_cast<const T*>(arguments.row_sum)[number];
      continue;
    }
    const Row<S> row(job, at);
    const T lse = row.lse();
    if (lse == minus_infinity<T>()) continue;
    const KeyGradient<S> key(row, grads, row.words(column), column, lse);
    sum += key.p * (key.grad - static_cast<const T*>(arguments.mean)[number]);
  }
  if (arguments.partial != nullptr) {
    static_cast<T*>(arguments.partial)[block * blocks.mask_columns + column] = sum;
  } else {
    write_mask(grads, blocks.position(mask_row, 0), column, sum);
  }
}

// The blocks' sums in the order of the blocks.
template <class S>
__global__ void __launch_bounds__(kColumnThreads, 1)
    softmax_mask_combine(const __grid_constant__ SoftmaxArguments arguments) {
  using T = typename Wide<S>::type;
  const SoftmaxBlocks blocks(arguments.job, arguments.grads);
  const std::int64_t chunks = (blocks.mask_columns + kColumnThreads - 1) / kColumnThreads;
  const std::int64_t mask_row = blockIdx.x / chunks;
  const std::int64_t column = blockIdx.x % chunks * kColumnThreads + threadIdx.x;
  if (column >= blocks.mask_columns) return;
  const T* partial = static_cast<const T*>(arguments.partial) + mask_row * blocks.per_mask_row * blocks.mask_columns;
  T sum = 0;
  for (std::int64_t block = 0; block < blocks.per_mask_row; ++block)
    sum += partial[block * blocks.mask_columns + column];
  write_mask(arguments.grads, blocks.position(mask_row, 0), column, sum);
}

SoftmaxArguments make_arguments(Session& session, const SoftmaxJob& job) {
  SoftmaxArguments arguments{};
  arguments.job = job;
  Bytes table;
  append(table, job.bands, static_cast<std::size_t>(job.batch));
  arguments.job.bands = at<Band>(session.table(table), 0);
  return arguments;
}

std::int64_t row_blocks(const SoftmaxJob& job) { return (job.rows() + kRowsPerBlock - 1) / kRowsPerBlock; }

}  // namespace

void run_masked_softmax_forward(const SoftmaxJob& job, const Stream& stream) {
  if (job.rows() == 0) return;
  Session session(stream);
  const SoftmaxArguments arguments = make_arguments(session, job);
  with_element_type(job.dtype, [&]<class S>(S) {
    launch("softmax_forward", softmax_forward<S>, row_blocks(job), kRowThreads, session.stream(), arguments);
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
  const std::int64_t chunks = (blocks.mask_columns + kColumnThreads - 1) / kColumnThreads;
  with_element_type(job.dtype, [&]<class S>(S) {
    launch("softmax_backward", softmax_backward<S>, row_blocks(job), kRowThreads, session.stream(), arguments);
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
