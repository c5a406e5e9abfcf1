// Tiles by VDPBF16PS, which adds the products of 16 pairs to 16 sums.
//
// The order of its additions, from Intel's Software Developer's Manual (VDPBF16PS, "Operation"): the product of the odd
// elements is added first, then that of the even ones, each a fused multiply-add that is rounded to the nearest even,
// with subnormal numbers taken and given as zero. tile_product_twin.h does the same (kOddThenEven).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/kernels/attention_bf16/narrow_avx512_bf16.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

struct TileProduct : NarrowByInstruction {
  struct Session {
    Session() {}
  };

  static void multiply(const TileBlock& block) {
    for (std::int64_t row = 0; row < kTileBlock; row += kRows) multiply_rows(block, row);
  }

 private:
  // Twice as many sums as the instruction takes cycles, and registers to spare for the factors.
  static constexpr int kRows = 8;

  __attribute__((noinline)) static void multiply_rows(const TileBlock& block, std::int64_t row) {
    float* const c = block.c + row * block.c_row;
    __m512 sums[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = block.adds ? _mm512_loadu_ps(c + r * block.c_row) : _mm512_setzero_ps();
      sums[r][1] = block.adds ? _mm512_loadu_ps(c + r * block.c_row + 16) : _mm512_setzero_ps();
    }
    const BFloat16* a = block.a + row * block.a_row;
    const BFloat16* b = block.b;
    for (std::int64_t step = 0; step < block.steps; ++step) {
      for (int pair = 0; pair < 16; ++pair) {
        const auto left = (__m512bh)_mm512_loadu_si512(b + 32 * pair);
        const auto right = (__m512bh)_mm512_loadu_si512(b + block.b_column + 32 * pair);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          int elements;
          memcpy(&elements, a + r * block.a_row + 2 * pair, sizeof elements);
          const auto both = (__m512bh)_mm512_set1_epi32(elements);
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, left);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, right);
        }
      }
      a += block.a_step;
      b += block.b_step;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(c + r * block.c_row, sums[r][0]);
      _mm512_storeu_ps(c + r * block.c_row + 16, sums[r][1]);
    }
  }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
