// Rounding of floats to bfloat16 by AVX512-BF16, which AMX's CPUs have too.
#pragma once

#include <immintrin.h>

#include "math/hd.h"
#include "math/lowp.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

struct NarrowByInstruction {
  FUSESTEP_HD static void narrow(const float* from, BFloat16* to) {
    store(to, rounded(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)));
  }

  FUSESTEP_HD static void narrow_pairs(const float* even, const float* odd, BFloat16* to) {
    const __m512i apart = rounded(_mm512_loadu_ps(even), _mm512_loadu_ps(odd));
    const __m512i mixed = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    store(to, _mm512_permutexvar_epi16(mixed, apart));
  }

 private:
  // The intrinsic takes the upper half first.
  FUSESTEP_HD static __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
  FUSESTEP_HD static void store(BFloat16* to, __m512i x) { _mm512_storeu_si512(to, x); }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
