// The benchmarks' floor: as plain a loop as can be over the memory that an optimizer moves. It is separate from the
// optimizers' loops on purpose: what slowed them down would otherwise slow down their measure too.
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/slice.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <int kArrays, int kWritten>
void stream_arrays(float* const* arrays, std::int64_t begin, std::int64_t end) {
  using V = Vec<float>;
  const V weight(1e-3f);
  float* array[kArrays];
  for (int k = 0; k < kArrays; ++k) array[k] = arrays[k];
  V sink(0.0f);
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(float));
  for (std::int64_t i = begin; i + V::kWidth <= end; i += V::kWidth) {
    V x[kArrays];
    for (int k = 0; k < kArrays; ++k) {
      __builtin_prefetch(array[k] + i + kAhead);
      x[k] = V::load(array[k] + i);
    }
    for (int k = 0; k < kWritten; ++k) fma(weight, x[(k + 1) % kArrays], x[k]).store(array[k] + i);
    if (kWritten == 0) sink = fma(weight, x[0], sink);
  }
  // Keeps the reads of a pass that writes nothing.
  if (kWritten == 0) asm volatile("" : : "m"(sink));
}

void stream(float* const* arrays, int num_arrays, int num_written, std::int64_t begin, std::int64_t end) {
  using Loop = void (*)(float* const*, std::int64_t, std::int64_t);
  // An optimizer reads one array more than it writes: the gradient.
  constexpr Loop loops[] = {stream_arrays<1, 0>, stream_arrays<2, 1>, stream_arrays<3, 2>, stream_arrays<4, 3>};
  if (num_written == num_arrays - 1 && num_arrays <= 4) loops[num_written](arrays, begin, end);
}

}  // namespace

void fill_stream(CpuKernels& kernels) { kernels.stream = stream; }

}  // namespace fusestep::FUSESTEP_ISA
