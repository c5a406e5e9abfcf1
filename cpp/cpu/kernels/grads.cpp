// One slice of what is done to gradients alone: their norms, and rewriting them scaled or clamped.
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/slice.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// One stream alone may be read further ahead than the several of an update (kPrefetchBytes): a third faster.
constexpr std::int64_t kLonePrefetchBytes = 2048;

template <class Norm>
class Lanes {
  using V = Vec<double>;
  static constexpr int kVectors = kNormLanes / V::kWidth;

 public:
  FUSESTEP_HD Lanes() {
    for (int k = 0; k < kVectors; ++k) total_[k] = V(0.0);
  }

  template <class G>
  FUSESTEP_HD void add(const G* grad, std::int64_t count) {
    V total[kVectors];
    for (int k = 0; k < kVectors; ++k) total[k] = total_[k];
    constexpr std::int64_t kAhead = kLonePrefetchBytes / static_cast<std::int64_t>(sizeof(G));
    std::int64_t i = 0;
    for (; i + kNormLanes <= count; i += kNormLanes) {
      for (int k = 0; k < kNormLanes; k += 64 / static_cast<int>(sizeof(G))) __builtin_prefetch(grad + i + k + kAhead);
      for (int k = 0; k < kVectors; ++k) total[k] = Norm::accumulate(total[k], V::load(grad + i + k * V::kWidth));
    }
    if (i < count) {
      // Zeros add nothing to any of the norms.
      G rest[kNormLanes] = {};
      memcpy(rest, grad + i, static_cast<std::size_t>(count - i) * sizeof(G));
      for (int k = 0; k < kVectors; ++k) total[k] = Norm::accumulate(total[k], V::load(rest + k * V::kWidth));
    }
    for (int k = 0; k < kVectors; ++k) total_[k] = total[k];
  }

  FUSESTEP_HD double combined() const {
    double lanes[kNormLanes];
    for (int k = 0; k < kVectors; ++k) total_[k].store(lanes + k * V::kWidth);
    for (int half = kNormLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] = Norm::combine(lanes[i], lanes[i + half]);
    }
    return lanes[0];
  }

 private:
  V total_[kVectors];
};

// Calls run(grad, count) with flat memory: the tensor's own, or a buffer that a strided one was gathered
// into. `kWrite` says whether the buffer goes back.
template <bool kWrite, class G, class Run>
FUSESTEP_HD void for_each_flat(const GradTensor& tensor, std::int64_t first, std::int64_t count, const Run& run) {
  G* data = static_cast<G*>(tensor.data);
  if (tensor.layout == nullptr) {
    run(data + first, count);
    return;
  }
  G buffer[kStridedBuffer];
  ElementCursor cursor(tensor.layout, first);
  while (count > 0) {
    const std::int64_t n = std::min({count, cursor.run(), kStridedBuffer});
    G* from = data + cursor.offset(0);
    gather(buffer, from, cursor.step(0), n);
    run(buffer, n);
    if (kWrite) scatter(from, cursor.step(0), buffer, n);
    cursor.advance(n);
    count -= n;
  }
}

template <bool kWrite, class Run>
FUSESTEP_HD void for_each_flat_of_any_dtype(const GradTensor& tensor, std::int64_t first, std::int64_t count,
                                            const Run& run) {
  switch (tensor.dtype) {
    case DType::float32:
      return for_each_flat<kWrite, float>(tensor, first, count, run);
    case DType::float64:
      return for_each_flat<kWrite, double>(tensor, first, count, run);
    case DType::float16:
      return for_each_flat<kWrite, Float16>(tensor, first, count, run);
    case DType::bfloat16:
      return for_each_flat<kWrite, BFloat16>(tensor, first, count, run);
    default:
      return;  // lists of gradients hold floats alone
  }
}

template <class Norm>
double norm_slice(const GradJob& job, std::int64_t slice) {
  Lanes<Norm> lanes;
  for_each_piece(job, slice, [&](const GradTensor& tensor, std::int64_t first, std::int64_t count) {
    for_each_flat_of_any_dtype<false>(tensor, first, count,
                                      [&](const auto* grad, std::int64_t n) { lanes.add(grad, n); });
  });
  return lanes.combined();
}

void transform_slice(const GradJob& job, GradTransform<double> transform, std::int64_t slice) {
  for_each_piece(job, slice, [&](const GradTensor& tensor, std::int64_t first, std::int64_t count) {
    for_each_flat_of_any_dtype<true>(tensor, first, count, [&]<class G>(G* grad, std::int64_t n) {
      using T = typename Wide<G>::type;
      using V = Vec<T>;
      const GradTransform<T> rounded{static_cast<T>(transform.scale), static_cast<T>(transform.limit)};
      std::int64_t i = 0;
      for (; i + V::kWidth <= n; i += V::kWidth) rounded(V::load(grad + i)).store(grad + i);
      if (i == n) return;
      G rest[V::kWidth] = {};
      const std::size_t bytes = static_cast<std::size_t>(n - i) * sizeof(G);
      memcpy(rest, grad + i, bytes);
      rounded(V::load(rest)).store(rest);
      memcpy(grad + i, rest, bytes);
    });
  });
}

}  // namespace

void fill_grads(CpuKernels& kernels) {
  kernels.norm[static_cast<int>(NormKind::one)] = norm_slice<NormOne>;
  kernels.norm[static_cast<int>(NormKind::two)] = norm_slice<NormTwo>;
  kernels.norm[static_cast<int>(NormKind::inf)] = norm_slice<NormInf>;
  kernels.transform = transform_slice;
}

}  // namespace fusestep::FUSESTEP_ISA
