// Cross-entropy: the greatest logit and the sum of exponentials in one pass over a row, the gradient in a second one.
// Where a row fits into shared memory it is kept there in between, so that the logits are read from memory once.
#include <cmath>

#include "cuda/cross_entropy.h"
#include "cuda/errors.h"
#include "cuda/launch.h"
#include "cuda/memory.h"
#include "cuda/row_threads.h"
#include "cuda/values.h"
#include "math/attention/score.h"

namespace fusestep::cuda {
namespace {

constexpr int kColumnThreads = 1024;  // of the kernels that look at one number of each row

struct CrossEntropyArguments {
  CrossEntropyJob job;
  std::int64_t* counted;  // rows that are not ignored; nullptr where no mean is taken
  double* losses;         // [rows]; nullptr without a reduction
  bool keeps;             // rows in shared memory
};

// A row in groups of 16 bytes, that begin where memory is aligned: the first and the last may be incomplete.
template <class S, int kThreads>
class CrossEntropyRow {
  using T = typename Wide<S>::type;
  static constexpr int kPack = kPackOf<S>;
  static constexpr int kAhead = sizeof(S) == 8 ? 1 : 4;  // groups that a thread reads before it computes with them

 public:
  __device__ __forceinline__ CrossEntropyRow(const CrossEntropyArguments& a, std::int64_t row)
      : arguments_(a),
        job_(a.job),
        row_(row),
        logits_(static_cast<const S*>(job_.logits.data) + row * job_.logits.row),
        grad_(job_.grad.data == nullptr ? nullptr : static_cast<S*>(job_.grad.data) + row * job_.grad.row),
        lead_(job_.logits.column == 1 ? lead_of(logits_) : 0),
        logits_in_packs_(job_.logits.column == 1),
        grad_in_packs_(job_.grad.column == 1 && lead_of(grad_) == lead_),
        keeps_(a.keeps) {}

  __device__ __forceinline__ void run() {
    const std::int64_t label = job_.labels[row_ * job_.label_stride];
    if (label == job_.ignore_index) {
      write_results(0, 0);
      if (grad_ != nullptr) write_zeros();
      return;
    }
    const bool exists =
        label >= 0 && label < job_.classes;  // the host could not look; memory beside the row is not read
    const T of_label = exists ? widened<T>(logits_[label * job_.logits.column]) : static_cast<T>(NAN);
    sum_up();
    threads().wait();  // until the label's logit has been read, which the gradient may overwrite
    const double lse = static_cast<double>(highest_) + ::log(exponentials_);
    if (threads().index() == 0) {
      const double mean = logits_sum_ / static_cast<double>(job_.classes);
      write_results(cross_entropy_loss(job_, lse, static_cast<double>(of_label), mean), lse);
    }
    if (grad_ != nullptr) write_gradient(lse, label, exists);
  }

 private:
  static __device__ __forceinline__ RowThreads threads() { return RowThreads(kThreads); }

  // How many elements before `row` memory is aligned for packs.
  static __device__ __forceinline__ int lead_of(const S* row) {
    return static_cast<int>(reinterpret_cast<std::uintptr_t>(row) % sizeof(Pack<S, kPack>) / sizeof(S));
  }
  __device__ __forceinline__ bool is_whole(std::int64_t first) const {
    return first >= 0 && first + kPack <= job_.classes;
  }
  __device__ __forceinline__ std::int64_t groups() const { return (job_.classes + lead_ + kPack - 1) / kPack; }
  __device__ __forceinline__ std::int64_t first_of(std::int64_t group) const { return group * kPack - lead_; }

  static __device__ __forceinline__ Pack<S, kPack>& kept(std::int64_t group) {
    return reinterpret_cast<Pack<S, kPack>*>(dynamic_shared_memory())[group];
  }

  // What does not exist is -inf.
  __device__ __forceinline__ Pack<S, kPack> read(std::int64_t first) const {
    if (logits_in_packs_ && is_whole(first)) return pack_at<S, kPack>(logits_ + first);
    Pack<S, kPack> pack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      narrow(minus_infinity<T>(), pack.value[i]);
      if (first + i >= 0 && first + i < job_.classes) pack.value[i] = logits_[(first + i) * job_.logits.column];
    }
    return pack;
  }

  __device__ __forceinline__ void write(std::int64_t first, const T (&value)[kPack]) const {
    if (grad_in_packs_ && is_whole(first)) {
      S stored[kPack];
#pragma unroll
      for (int i = 0; i < kPack; ++i) narrow(value[i], stored[i]);
      store_neighbours(grad_ + first, stored);
      return;
    }
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (first + i >= 0 && first + i < job_.classes) narrow(value[i], grad_[(first + i) * job_.grad.column]);
    }
  }

  __device__ __forceinline__ void write_zeros() const {
    const T zeros[kPack] = {};
    for (std::int64_t group = threads().index(); group < groups(); group += kThreads) write(first_of(group), zeros);
  }

  // Calls visit(first element, logits) for this thread's groups, read from memory, and keeps them if rows are kept.
  template <class Visit>
  __device__ __forceinline__ void for_each_group(const Visit& visit) const {
#pragma unroll 1
    for (std::int64_t begin = threads().index(); begin < groups(); begin += kThreads * kAhead) {
      Pack<S, kPack> pack[kAhead];
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const std::int64_t group = begin + ahead * kThreads;
        if (group < groups()) pack[ahead] = read(first_of(group));
      }
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const std::int64_t group = begin + ahead * kThreads;
        if (group >= groups()) break;
        if (keeps_) kept(group) = pack[ahead];
        visit_pack(first_of(group), pack[ahead], visit);
      }
    }
  }
  // The same of what is kept, each thread what it kept itself.
  template <class Visit>
  __device__ __forceinline__ void for_each_kept_group(const Visit& visit) const {
#pragma unroll 2
    for (std::int64_t group = threads().index(); group < groups(); group += kThreads) {
      visit_pack(first_of(group), kept(group), visit);
    }
  }
  template <class Visit>
  static __device__ __forceinline__ void visit_pack(std::int64_t first, const Pack<S, kPack>& pack,
                                                    const Visit& visit) {
    T x[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) x[i] = widened<T>(pack.value[i]);
    visit(first, x);
  }

  // exp(x - highest); where nothing was above -inf, 0 for it and NaN for NaN.
  static __device__ __forceinline__ T exponential(T x, T highest) {
    const T subtracted = highest == minus_infinity<T>() ? T(0) : highest;
    return power_of_two((x - subtracted) * static_cast<T>(kLog2E));
  }

  __device__ __forceinline__ void sum_up() {
    T highest = minus_infinity<T>();
    T exponentials = 0;
    T plain = 0;
    for_each_group([&](std::int64_t first, const T(&x)[kPack]) {
      T both = highest;
#pragma unroll
      for (int i = 0; i < kPack; ++i) both = max(both, x[i]);
      exponentials *= exponential(highest, both);
#pragma unroll
      for (int i = 0; i < kPack; ++i) exponentials += exponential(x[i], both);
      highest = both;
      if (job_.label_smoothing == 0) return;
#pragma unroll
      for (int i = 0; i < kPack; ++i) plain += first + i >= 0 && first + i < job_.classes ? x[i] : T(0);
    });
    highest_ = threads().greatest(highest);
    exponentials_ = threads().sum(static_cast<double>(exponentials * exponential(highest, highest_)));
    if (job_.label_smoothing != 0) logits_sum_ = threads().sum(static_cast<double>(plain));
  }

  __device__ __forceinline__ void write_gradient(double lse, std::int64_t label, bool exists) const {
    double scale = exists ? 1 : static_cast<double>(NAN);
    if (arguments_.counted != nullptr) scale /= static_cast<double>(*arguments_.counted);
    const CrossEntropyGradient<T> of(job_, scale, lse, exponentials_);
    const auto gradient = [&](std::int64_t first, const T(&x)[kPack]) {
      T value[kPack];
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        value[i] = fma(exponential(x[i], highest_), of.factor, -of.smoothed);
        if (first + i == label) value[i] -= of.hit;
      }
      write(first, value);
    };
    if (keeps_) return for_each_kept_group(gradient);
    for_each_group(gradient);
  }

  __device__ __forceinline__ void write_results(double loss, double lse) const {
    if (threads().index() != 0) return;
    static_cast<T*>(job_.lse.data)[row_ * job_.lse.stride] = static_cast<T>(lse);
    if (arguments_.losses != nullptr) {
      arguments_.losses[row_] = loss;
    } else {
      static_cast<T*>(job_.loss.data)[row_ * job_.loss.stride] = static_cast<T>(loss);
    }
  }

  const CrossEntropyArguments& arguments_;
  const CrossEntropyJob& job_;
  const std::int64_t row_;
  const S* const logits_;
  S* const grad_;
  const int lead_;
  const bool logits_in_packs_;
  const bool grad_in_packs_;
  const bool keeps_;
  T highest_;
  double exponentials_;  // sum of exp(logit - highest)
  double logits_sum_ = 0;
};

template <int kThreads>
constexpr int kBlockThreads = kThreads < 128 ? 128 : kThreads;

template <class S, int kThreads>
__global__ void __launch_bounds__(kBlockThreads<kThreads>, 512 / kBlockThreads<kThreads>)
    cross_entropy(const __grid_constant__ CrossEntropyArguments arguments) {
  constexpr int kRowsPerBlock = kBlockThreads<kThreads> / kThreads;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kThreads;
  if (row >= arguments.job.rows) return;  // all threads of the row
  CrossEntropyRow<S, kThreads>(arguments, row).run();
}

// One block, before the rows.
__global__ void __launch_bounds__(kColumnThreads)
    count_labels(const __grid_constant__ CrossEntropyArguments arguments) {
  const CrossEntropyJob& job = arguments.job;
  std::int64_t counted = 0;
  for (std::int64_t row = threadIdx.x; row < job.rows; row += kColumnThreads) {
    counted += job.labels[row * job.label_stride] != job.ignore_index;
  }
  counted = RowThreads(kColumnThreads).sum(counted);
  if (threadIdx.x == 0) *arguments.counted = counted;
}

// One block, after the rows.
template <class T>
__global__ void __launch_bounds__(kColumnThreads)
    reduce_losses(const __grid_constant__ CrossEntropyArguments arguments) {
  double total = 0;
  for (std::int64_t row = threadIdx.x; row < arguments.job.rows; row += kColumnThreads) total += arguments.losses[row];
  total = RowThreads(kColumnThreads).sum(total);
  if (threadIdx.x != 0) return;
  if (arguments.counted != nullptr) total /= static_cast<double>(*arguments.counted);  // 0 / 0 is NaN
  *static_cast<T*>(arguments.job.loss.data) = static_cast<T>(total);
}

template <class S>
void launch_rows(CrossEntropyArguments arguments, int device, cudaStream_t stream) {
  const std::int64_t groups = arguments.job.classes / kPackOf<S> + 2;
  const auto with = [&]<int kThreads>(std::integral_constant<int, kThreads>, std::size_t shared_bytes) {
    constexpr int kRowsPerBlock = kBlockThreads<kThreads> / kThreads;
    launch("cross_entropy", cross_entropy<S, kThreads>, (arguments.job.rows + kRowsPerBlock - 1) / kRowsPerBlock,
           kBlockThreads<kThreads>, stream, arguments, shared_bytes);
  };
  // float64 is for checking gradients: it has one kernel for all rows.
  constexpr bool kHasShort = sizeof(S) < sizeof(double);
  if constexpr (kHasShort) {
    if (groups <= 128) return with(std::integral_constant<int, 32>{}, 0);  // read again from the first-level cache
  }
  int limit = 0;
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cross_entropy");
  std::size_t shared_bytes = 1024 + static_cast<std::size_t>(groups) * sizeof(Pack<S, kPackOf<S>>);
  constexpr std::size_t kStatic = 2048;  // what the kernel's own variables take at most
  arguments.keeps = arguments.job.grad.data != nullptr && shared_bytes + kStatic <= static_cast<std::size_t>(limit);
  if (!arguments.keeps) shared_bytes = 0;
  if constexpr (kHasShort) {
    if (groups <= 1024) return with(std::integral_constant<int, 256>{}, shared_bytes);
  }
  with(std::integral_constant<int, 512>{}, shared_bytes);
}

}  // namespace

void run_cross_entropy(const CrossEntropyJob& job, const Stream& stream) {
  Session session(stream);
  CrossEntropyArguments arguments{};
  arguments.job = job;
  if (job.reduction != Reduction::none) {
    unsigned char* memory = session.scratch(sizeof(std::int64_t) + static_cast<std::size_t>(job.rows) * sizeof(double));
    arguments.losses = reinterpret_cast<double*>(memory + sizeof(std::int64_t));
    if (job.reduction == Reduction::mean) arguments.counted = reinterpret_cast<std::int64_t*>(memory);
  }
  if (arguments.counted != nullptr)
    launch("count_labels", count_labels, 1, kColumnThreads, session.stream(), arguments);
  with_element_type(job.dtype, [&]<class S>(S) {
    launch_rows<S>(arguments, session.device(), session.stream());
    if (arguments.losses == nullptr) return;
    launch("reduce_losses", reduce_losses<typename Wide<S>::type>, 1, kColumnThreads, session.stream(), arguments);
  });
  session.finish();
}

}  // namespace fusestep::cuda
