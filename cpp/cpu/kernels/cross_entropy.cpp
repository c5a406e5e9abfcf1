// Cross-entropy, row by row: the greatest logit and the sum of exponentials in one pass over memory, then the gradient
// while the row is still in the cache. Sums go over a fixed number of lanes, so that their bits do not depend on the
// width of the vectors.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels/attention/store.h"
#include "cpu/kernels/kernels.h"
#include "math/attention/score.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

constexpr std::int64_t kLanes = 32;
constexpr std::int64_t kChunk = 1024;  // elements that the first-level cache holds between their two readings

template <class T>
struct RowSums {
  T highest = -std::numeric_limits<T>::infinity();
  double exponentials = 0;  // sum of exp(logit - highest)
  double logits = 0;        // only with label smoothing
};

// One sum for each lane, joined in one order.
template <class T>
class LaneSums {
  using V = Vec<T>;
  static constexpr int kVectors = static_cast<int>(kLanes) / V::kWidth;

 public:
  LaneSums() { std::fill_n(sums_, kVectors, V(T(0))); }
  FUSESTEP_HD void add(int vector, V x) { sums_[vector] = sums_[vector] + x; }
  T total() const {
    T lanes[kLanes];
    for (int v = 0; v < kVectors; ++v) sums_[v].store(lanes + v * V::kWidth);
    for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }

 private:
  V sums_[kVectors];
};

template <class T, class S>
class CrossEntropyRow {
  using V = Vec<T>;
  static constexpr int kVectors = static_cast<int>(kLanes) / V::kWidth;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  CrossEntropyRow(const CrossEntropyJob& job, std::int64_t row, double scale)
      : job_(job),
        row_(row),
        scale_(scale),
        logits_(static_cast<const S*>(job.logits.data) + row * job.logits.row),
        grad_(job.grad.data == nullptr ? nullptr : static_cast<S*>(job.grad.data) + row * job.grad.row) {}

  CrossEntropyResult run() {
    const std::int64_t label = job_.labels[row_ * job_.label_stride];
    if (label == job_.ignore_index) {
      for (std::int64_t i = 0; grad_ != nullptr && i < job_.classes; ++i) grad_[i * job_.grad.column] = S{};
      return {0, 0};
    }
    const RowSums<T> sums = sum_up();
    const T of_label = widen<T>(logits_[label * job_.logits.column]);
    const double lse = static_cast<double>(sums.highest) + std::log(sums.exponentials);
    if (grad_ != nullptr) write_gradient(sums, lse, label, of_label);
    const double mean = sums.logits / static_cast<double>(job_.classes);
    return {cross_entropy_loss(job_, lse, static_cast<double>(of_label), mean), lse};
  }

 private:
  // Calls visit(vectors) for each kLanes logits from `begin` on; what is missing at the end is `rest`.
  template <class Visit>
  FUSESTEP_HD void for_each_group(std::int64_t begin, std::int64_t end, T rest, const Visit& visit) const {
    V x[kVectors];
    std::int64_t i = begin;
    if (job_.logits.column == 1) {
      for (; i + kLanes <= end; i += kLanes) {
        for (int v = 0; v < kVectors; ++v) x[v] = V::load(logits_ + i + v * V::kWidth);
        visit(i, x);
      }
    }
    for (; i < end; i += kLanes) {
      T lanes[kLanes];
      const std::int64_t count = std::min(kLanes, end - i);
      for (std::int64_t k = 0; k < count; ++k) lanes[k] = widen<T>(logits_[(i + k) * job_.logits.column]);
      std::fill(lanes + count, lanes + kLanes, rest);
      for (int v = 0; v < kVectors; ++v) x[v] = V::load(lanes + v * V::kWidth);
      visit(i, x);
    }
  }

  FUSESTEP_HD static V exponential(V x, V highest) { return exp2<T>((x - highest) * V(static_cast<T>(kLog2E))); }

  RowSums<T> sum_up() const {
    RowSums<T> sums;
    for (std::int64_t begin = 0; begin < job_.classes; begin += kChunk) {
      const std::int64_t end = std::min(begin + kChunk, job_.classes);
      if (job_.label_smoothing != 0) {
        LaneSums<T> plain;
        for_each_group(begin, end, T(0), [&](std::int64_t, const V(&x)[kVectors]) {
          for (int v = 0; v < kVectors; ++v) plain.add(v, x[v]);
        });
        sums.logits += static_cast<double>(plain.total());
      }
      const T highest = fusestep::max(sums.highest, highest_of(begin, end));
      if (highest == -kInfinity) continue;  // nothing to add, and the difference of infinities is NaN
      LaneSums<T> powers;
      for_each_group(begin, end, -kInfinity, [&](std::int64_t, const V(&x)[kVectors]) {
        for (int v = 0; v < kVectors; ++v) powers.add(v, exponential(x[v], V(highest)));
      });
      const double apart = static_cast<double>(sums.highest) - static_cast<double>(highest);
      sums.exponentials =
          fusestep::fma(sums.exponentials, fusestep::exp2<double>(apart * kLog2E), static_cast<double>(powers.total()));
      sums.highest = highest;
    }
    return sums;
  }

  T highest_of(std::int64_t begin, std::int64_t end) const {
    V highest[kVectors];
    std::fill_n(highest, kVectors, V(-kInfinity));
    for_each_group(begin, end, -kInfinity, [&](std::int64_t, const V(&x)[kVectors]) {
      for (int v = 0; v < kVectors; ++v) highest[v] = max(highest[v], x[v]);
    });
    T lanes[kLanes];
    for (int v = 0; v < kVectors; ++v) highest[v].store(lanes + v * V::kWidth);
    for (std::int64_t i = 1; i < kLanes; ++i) lanes[0] = fusestep::max(lanes[0], lanes[i]);
    return lanes[0];
  }

  void write_gradient(const RowSums<T>& sums, double lse, std::int64_t label, T of_label) {
    const CrossEntropyGradient<T> of(job_, scale_, lse, sums.exponentials);
    const V highest(sums.highest);
    const auto gradient = [&](V x) { return fma(exponential(x, highest), V(of.factor), V(-of.smoothed)); };
    for_each_group(0, job_.classes, -kInfinity, [&](std::int64_t i, const V(&x)[kVectors]) {
      if (job_.grad.column == 1 && i + kLanes <= job_.classes) {
        for (int v = 0; v < kVectors; ++v) gradient(x[v]).store(grad_ + i + v * V::kWidth);
        return;
      }
      T lanes[kLanes];
      for (int v = 0; v < kVectors; ++v) gradient(x[v]).store(lanes + v * V::kWidth);
      const std::int64_t count = std::min(kLanes, job_.classes - i);
      for (std::int64_t k = 0; k < count; ++k) narrow(lanes[k], grad_[(i + k) * job_.grad.column]);
    });
    const T power = fusestep::exp2<T>((of_label - sums.highest) * static_cast<T>(kLog2E));
    narrow(fusestep::fma(power, of.factor, -of.smoothed) - of.hit, grad_[label * job_.grad.column]);
  }

  const CrossEntropyJob& job_;
  const std::int64_t row_;
  const double scale_;
  const S* const logits_;
  S* const grad_;
};

CrossEntropyResult cross_entropy(const CrossEntropyJob& job, std::int64_t row, double scale) {
  CrossEntropyResult result{};
  with_elements(job.logits.data, job.dtype, 0, [&]<class S>(const S*) {
    result = CrossEntropyRow<std::conditional_t<sizeof(S) == 8, double, float>, S>(job, row, scale).run();
  });
  return result;
}

}  // namespace

void fill_cross_entropy(CpuKernels& kernels) { kernels.cross_entropy = cross_entropy; }

}  // namespace fusestep::FUSESTEP_ISA
