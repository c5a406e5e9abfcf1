// The benchmarks' other floor: the most multiply-adds that a core does, when nothing has to be loaded or stored.
#include "cpu/kernels/kernels.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

using V = Vec<float>;

// Twelve independent chains hide the latency of all cores so far, and fit in the sixteen registers of AVX2.
constexpr int kChains = 12;
constexpr std::int64_t kFlopsAnIteration = INT64_C(2) * kChains * V::kWidth;

std::int64_t fma_peak(std::int64_t iterations) {
  V x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = V(1.0f + 0.1f * static_cast<float>(k));
  V factor(0.75f);
  V term(0.25f);  // they all tend to 1: never to a subnormal number, which would be slower
  asm volatile("" : "+m"(factor), "+m"(term));
  for (std::int64_t i = 0; i < iterations; ++i) {
    for (int k = 0; k < kChains; ++k) x[k] = fma(x[k], factor, term);
  }
  for (int k = 0; k < kChains; ++k) asm volatile("" : : "m"(x[k]));
  return iterations * kFlopsAnIteration;
}

}  // namespace

void fill_peak(CpuKernels& kernels) { kernels.fma_peak = fma_peak; }

}  // namespace fusestep::FUSESTEP_ISA
