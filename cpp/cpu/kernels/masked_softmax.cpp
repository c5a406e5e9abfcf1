// The masked softmax, row by row: a row is brought into scratch memory as scores in base 2, worked on there, and
// written back. Keys outside the row's band are neither read nor computed.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/attention/tiles.h"
#include "cpu/kernels/kernels.h"
#include "jobs/softmax_blocks.h"
#include "math/attention/dropout.h"
#include "math/attention/score.h"
#include "threads/scratch.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class T>
class SoftmaxRows {
  using V = Vec<T>;
  using W = Vec<std::uint32_t>;
  static constexpr std::int64_t kWidth = V::kWidth;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  explicit SoftmaxRows(const SoftmaxJob& job)
      : job_(job), scale_base2_(static_cast<T>(job.scale * kLog2E)), keep_scale_(static_cast<T>(job.dropout.scale())) {
    Arena measure(nullptr);
    carve(measure);
    Arena arena(thread_scratch(measure.size()));
    carve(arena);
  }

  void forward(std::int64_t row) {
    start(row % job_.queries, row / job_.queries % job_.heads, row / job_.queries / job_.heads);
    load_scores();
    const T highest = highest_score();
    T sum = 0;
    if (highest != -kInfinity) sum = exponentials(highest);
    T& lse = static_cast<T*>(job_.lse.data)[row_offset(job_.lse)];
    if (sum == 0) {
      lse = -kInfinity;
      store_zeros(job_.out, 0, job_.keys);
      return;
    }
    lse = static_cast<T>((static_cast<double>(highest) + std::log2(static_cast<double>(sum))) * kLn2);
    const V factor(keep_scale_ / sum);
    if (job_.dropout.drops()) number();
    for (std::int64_t i = 0; i < padded_; i += kWidth) kept(V::load(scores_ + i) * factor, i).store(scores_ + i);
    store(job_.out, scores_, T(1));
  }

  // Writes the row's gradient, and leaves the gradient of its scores with the mask for `add_to`.
  void backward(const SoftmaxGrads& grads, std::int64_t query, std::int64_t head, std::int64_t batch) {
    start(query, head, batch);
    const T lse = static_cast<const T*>(job_.lse.data)[row_offset(job_.lse)];
    if (lse == -kInfinity) {
      count_ = padded_ = 0;
      store_zeros(grads.grad_scores, 0, job_.keys);
      return;
    }
    load_scores();
    load(grads.grad_out, job_.dtype, grad_, T(0));
    if (job_.dropout.drops()) number();
    const V lse_base2(static_cast<T>(lse * kLog2E));
    const V keep_scale(keep_scale_);
    V total(T(0));
    for (std::int64_t i = 0; i < padded_; i += kWidth) {
      const V p = exp2<T>(V::load(scores_ + i) - lse_base2);
      const V grad = kept(V::load(grad_ + i), i) * keep_scale;
      p.store(scores_ + i);
      grad.store(grad_ + i);
      total = fma(p, grad, total);
    }
    const V mean(sum_of(total));
    for (std::int64_t i = 0; i < padded_; i += kWidth) {
      (V::load(scores_ + i) * (V::load(grad_ + i) - mean)).store(grad_ + i);
    }
    store(grads.grad_scores, grad_, static_cast<T>(job_.scale));
  }

  // Adds the gradient that `backward` left: one number for each key, or their sum.
  void add_to(T* sums, bool by_key) const {
    if (by_key) {
      for (std::int64_t i = 0; i < count_; ++i) sums[range_.begin + i] += grad_[i];
    } else {
      V total(T(0));
      for (std::int64_t i = 0; i < padded_; i += kWidth) total = total + V::load(grad_ + i);
      sums[0] += sum_of(total);
    }
  }

  T* sums() const { return sums_; }

 private:
  void carve(Arena& arena) {
    const std::int64_t padded = round_up(job_.keys, kWidth);
    scores_ = arena.take<T>(padded);
    grad_ = arena.take<T>(padded);
    sums_ = arena.take<T>(std::max<std::int64_t>(padded, 1));
    numbers_ = arena.take<std::uint16_t>(round_up(padded + kDropoutGroup, kDropoutGroup * W::kWidth));
  }

  void start(std::int64_t query, std::int64_t head, std::int64_t batch) {
    query_ = query;
    head_ = head;
    batch_ = batch;
    range_ = job_.bands[batch].keys_of(query);
    count_ = range_.end - range_.begin;
    padded_ = round_up(count_, kWidth);
  }

  std::int64_t row_offset(const HeadTensor& tensor) const { return tensor.offset(batch_, head_) + query_ * tensor.row; }

  // The row's keys in the band, and `rest` up to whole vectors.
  void load(const HeadTensor& tensor, DType dtype, T* to, T rest) const {
    with_elements(tensor.data, dtype, row_offset(tensor) + range_.begin * tensor.column,
                  [&](const auto* from) { load_row(to, from, tensor.column, count_); });
    std::fill(to + count_, to + padded_, rest);
  }

  void load_scores() {
    load(job_.scores, job_.dtype, scores_, -kInfinity);
    const V scale(scale_base2_);
    const bool additive = job_.mask.data != nullptr && job_.mask_dtype != DType::boolean;
    if (additive) load(job_.mask, job_.mask_dtype, grad_, T(0));
    for (std::int64_t i = 0; i < padded_; i += kWidth) {
      const V score = V::load(scores_ + i) * scale;
      (additive ? add_mask<T>(score, V::load(grad_ + i)) : score).store(scores_ + i);
    }
    // Once more: a scale of 0 or below has changed it.
    std::fill(scores_ + count_, scores_ + padded_, -kInfinity);
    if (job_.mask.data != nullptr && job_.mask_dtype == DType::boolean) {
      const auto* allowed =
          static_cast<const std::uint8_t*>(job_.mask.data) + row_offset(job_.mask) + range_.begin * job_.mask.column;
      for (std::int64_t i = 0; i < count_; ++i) {
        scores_[i] = allowed[i * job_.mask.column] != 0 ? scores_[i] : -kInfinity;
      }
    }
  }

  T highest_score() const {
    V highest(-kInfinity);
    for (std::int64_t i = 0; i < padded_; i += kWidth) highest = max(highest, V::load(scores_ + i));
    T lanes[kWidth];
    highest.store(lanes);
    for (std::int64_t i = 1; i < kWidth; ++i) lanes[0] = fusestep::max(lanes[0], lanes[i]);
    return lanes[0];
  }

  // Scores become their exponentials; gives the sum of these.
  T exponentials(T highest) {
    V total(T(0));
    for (std::int64_t i = 0; i < padded_; i += kWidth) {
      const V p = exp2<T>(V::load(scores_ + i) - V(highest));
      p.store(scores_ + i);
      total = total + p;
    }
    return sum_of(total);
  }

  static T sum_of(V total) {
    T lanes[kWidth];
    total.store(lanes);
    for (std::int64_t i = 1; i < kWidth; ++i) lanes[0] += lanes[i];
    return lanes[0];
  }

  // The numbers of the band's keys, from the start of the first one's group on.
  void number() {
    const AttentionDropout dropout(job_.dropout, batch_ * job_.heads + head_);
    const auto query = dropout.query(W(static_cast<std::uint32_t>(query_)));
    const std::int64_t first = range_.begin / kDropoutGroup;
    const std::int64_t groups = (range_.end + kDropoutGroup - 1) / kDropoutGroup - first;
    for (std::int64_t group = 0; group < groups; group += W::kWidth) {
      const auto [word] = dropout.words(query, dropout.keys(W::iota(static_cast<std::uint32_t>(first + group))));
      W::store_numbers(numbers_ + group * kDropoutGroup, word[0], word[1], word[2], word[3]);
    }
  }

  // The vector at key range_.begin + i without what is dropped.
  FUSESTEP_HD V kept(V x, std::int64_t i) const {
    if (!job_.dropout.drops()) return x;
    return keep(x, numbers_ + range_.begin % kDropoutGroup + i, static_cast<std::uint16_t>(job_.dropout.threshold));
  }

  // factor * from to the band's keys, zeros to the others.
  void store(const HeadTensor& tensor, const T* from, T factor) const {
    store_zeros(tensor, 0, range_.begin);
    store_row(tensor, job_.dtype, row_offset(tensor) + range_.begin * tensor.column, from, factor, count_);
    store_zeros(tensor, range_.end, job_.keys);
  }

  void store_zeros(const HeadTensor& tensor, std::int64_t begin, std::int64_t end) const {
    with_elements(tensor.data, job_.dtype, row_offset(tensor), [&]<class S>(const S* row) {
      for (std::int64_t key = begin; key < end; ++key) const_cast<S*>(row)[key * tensor.column] = S{};
    });
  }

  const SoftmaxJob& job_;
  const T scale_base2_;
  const T keep_scale_;
  std::int64_t query_ = 0;
  std::int64_t head_ = 0;
  std::int64_t batch_ = 0;
  PositionRange range_{};
  std::int64_t count_ = 0;   // keys of the range
  std::int64_t padded_ = 0;  // up to whole vectors
  T* scores_ = nullptr;
  T* grad_ = nullptr;
  T* sums_ = nullptr;
  std::uint16_t* numbers_ = nullptr;
};

template <class T>
void forward_rows(const SoftmaxJob& job, std::int64_t first, std::int64_t last) {
  SoftmaxRows<T> rows(job);
  for (std::int64_t row = first; row < last; ++row) rows.forward(row);
}

template <class T>
void backward_block(const SoftmaxBackwardJob& job, std::int64_t block) {
  const SoftmaxJob& forward = *job.forward;
  const SoftmaxGrads& grads = *job.grads;
  SoftmaxRows<T> rows(forward);
  const SoftmaxBlocks blocks(forward, grads);
  const std::int64_t mask_row = block / blocks.per_mask_row;
  const std::int64_t first = block % blocks.per_mask_row * kSoftmaxBlock;
  const std::int64_t last = std::min(first + kSoftmaxBlock, blocks.members);
  const bool sums_up = grads.grad_mask.data != nullptr;
  const std::int64_t columns = blocks.mask_columns;
  T* sums = rows.sums();
  if (sums_up) {
    if (job.partial != nullptr) sums = static_cast<T*>(job.partial) + block * columns;
    std::fill_n(sums, columns, T(0));
  }
  for (std::int64_t member = first; member < last; ++member) {
    const SoftmaxPosition at = blocks.position(mask_row, member);
    rows.backward(grads, at.query, at.head, at.batch);
    if (sums_up) rows.add_to(sums, grads.mask_has[3]);
  }
  if (sums_up && job.partial == nullptr) {
    const SoftmaxPosition at = blocks.position(mask_row, 0);
    const HeadTensor& to = grads.grad_mask;
    store_row(to, grads.grad_mask_dtype, to.offset(at.batch, at.head) + at.query * to.row, sums, T(1), columns);
  }
}

// The blocks' sums in the order of the blocks.
template <class T>
void combine_mask_row(const SoftmaxBackwardJob& job, std::int64_t mask_row) {
  const SoftmaxBlocks blocks(*job.forward, *job.grads);
  const std::int64_t columns = blocks.mask_columns;
  T* sums = static_cast<T*>(thread_scratch(static_cast<std::size_t>(columns) * sizeof(T)));
  std::fill_n(sums, columns, T(0));
  for (std::int64_t block = 0; block < blocks.per_mask_row; ++block) {
    const T* partial = static_cast<const T*>(job.partial) + (mask_row * blocks.per_mask_row + block) * columns;
    for (std::int64_t i = 0; i < columns; ++i) sums[i] += partial[i];
  }
  const SoftmaxPosition at = blocks.position(mask_row, 0);
  const HeadTensor& to = job.grads->grad_mask;
  store_row(to, job.grads->grad_mask_dtype, to.offset(at.batch, at.head) + at.query * to.row, sums, T(1), columns);
}

void softmax_forward(const SoftmaxJob& job, std::int64_t first, std::int64_t last) {
  job.dtype == DType::float64 ? forward_rows<double>(job, first, last) : forward_rows<float>(job, first, last);
}

void softmax_backward(const SoftmaxBackwardJob& job, std::int64_t block) {
  job.forward->dtype == DType::float64 ? backward_block<double>(job, block) : backward_block<float>(job, block);
}

void softmax_grad_mask(const SoftmaxBackwardJob& job, std::int64_t mask_row) {
  job.forward->dtype == DType::float64 ? combine_mask_row<double>(job, mask_row)
                                       : combine_mask_row<float>(job, mask_row);
}

}  // namespace

void fill_masked_softmax(CpuKernels& kernels) {
  kernels.softmax_forward = softmax_forward;
  kernels.softmax_backward = softmax_backward;
  kernels.softmax_grad_mask = softmax_grad_mask;
}

}  // namespace fusestep::FUSESTEP_ISA
