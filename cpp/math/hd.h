// The arithmetic that formulas are written in, for one element: float and double on any host or device. The vector
// types of simd/ offer the same names, so that one template is the formula everywhere.
//
// Contraction is off in every build (-ffp-contract=off, --fmad=false): a multiply-add is fused where the formula says
// fma and nowhere else. That is why an update has the same bits on every instruction set and on the GPU.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FUSESTEP_HD __host__ __device__ __forceinline__
#else
// always_inline is needed for correctness. Of a function that several objects emit, the linker keeps one copy. If it
// kept the one compiled for AVX-512, a CPU without AVX-512 would stop at an illegal instruction.
#define FUSESTEP_HD inline __attribute__((always_inline))
#endif

namespace fusestep {

FUSESTEP_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FUSESTEP_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }

FUSESTEP_HD float sqrt(float a) { return ::sqrtf(a); }
FUSESTEP_HD double sqrt(double a) { return ::sqrt(a); }

FUSESTEP_HD float abs(float a) { return ::fabsf(a); }
FUSESTEP_HD double abs(double a) { return ::fabs(a); }

// The greater of the two; NaN if either is NaN, as torch.maximum has it.
FUSESTEP_HD float max(float a, float b) { return a != a || a > b ? a : b; }
FUSESTEP_HD double max(double a, double b) { return a != a || a > b ? a : b; }

// Where `a` is a number, in fewer instructions: the greater and the smaller of the two; NaN if b is NaN.
FUSESTEP_HD float max_number(float a, float b) { return a > b ? a : b; }
FUSESTEP_HD double max_number(double a, double b) { return a > b ? a : b; }
FUSESTEP_HD float min_number(float a, float b) { return a < b ? a : b; }
FUSESTEP_HD double min_number(double a, double b) { return a < b ? a : b; }

}  // namespace fusestep
