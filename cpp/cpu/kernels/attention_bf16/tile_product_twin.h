// What the instructions compute, bit for bit, on any vector type: so that everything around them runs, and is tested,
// on machines that lack them. The orders of the additions, with their source, are in tile_product_amx.h and
// tile_product_avx512_bf16.h.
//
// One thing is not the instructions': a result that is the smallest normal number only after rounding is kept here,
// and may be zero there.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernel_table.h"
#include "math/lowp.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

enum class Additions { kTwoChains, kOddThenEven };

#if defined(FUSESTEP_TILES_TWIN_OF_AMX)
inline constexpr Additions kAdditions = Additions::kTwoChains;
#else
inline constexpr Additions kAdditions = Additions::kOddThenEven;
#endif

struct TileProduct {
  using V = Vec<float>;
  using W = Vec<std::uint32_t>;

  struct Session {
    Session() {}
  };

  __attribute__((noinline)) static void multiply(const TileBlock& block) {
    for (std::int64_t row = 0; row < kTileBlock; ++row) {
      float* const c = block.c + row * block.c_row;
      for (std::int64_t i = 0; i < kTileBlock; i += V::kWidth) {
        (block.adds ? flushed(V::load(c + i)) : V(0.0f)).store(c + i);
      }
    }
    for (std::int64_t step = 0; step < block.steps; ++step) add_step(block, step);
  }

  static void narrow(const float* from, BFloat16* to) {
    for (int i = 0; i < 32; i += V::kWidth) flushed(V::load(from + i)).store(to + i);
  }

  static void narrow_pairs(const float* even, const float* odd, BFloat16* to) {
    for (int i = 0; i < 16; ++i) {
      to[2 * i] = narrowed(even[i]);
      to[2 * i + 1] = narrowed(odd[i]);
    }
  }

 private:
  // Subnormal numbers become 0 of their sign.
  FUSESTEP_HD static V flushed(V x) {
    const V flushed = zero_below(x, abs(x), V(std::numeric_limits<float>::min()));
    return as_float(as_words(flushed) | (as_words(x) & W(0x80000000u)));
  }

  FUSESTEP_HD static BFloat16 narrowed(float x) {
    const bool subnormal = x != 0 && (bits_of(x) & 0x7f800000u) == 0;
    return to_bfloat16(subnormal ? float_of(bits_of(x) & 0x80000000u) : x);
  }

  // The factors of a step as floats.
  struct Factors {
    float a[kTileBlock][kTileBlock];
    float b_even[16][kTileBlock];
    float b_odd[16][kTileBlock];

    Factors(const TileBlock& block, std::int64_t step) {
      for (std::int64_t row = 0; row < kTileBlock; ++row) {
        const BFloat16* const from = block.a + step * block.a_step + row * block.a_row;
        for (std::int64_t i = 0; i < kTileBlock; i += V::kWidth) flushed(V::load(from + i)).store(a[row] + i);
      }
      for (std::int64_t pair = 0; pair < 16; ++pair) {
        for (std::int64_t column = 0; column < kTileBlock; column += V::kWidth) {
          std::uint32_t words[V::kWidth];
          memcpy(words, block.b + step * block.b_step + column / 16 * block.b_column + pair * 32 + column % 16 * 2,
                 sizeof words);
          flushed(as_float(W::load(words) << 16)).store(b_even[pair] + column);
          flushed(as_float(W::load(words) & W(0xffff0000u))).store(b_odd[pair] + column);
        }
      }
    }
  };

  static void add_step(const TileBlock& block, std::int64_t step) {
    const Factors factors(block, step);
    for (std::int64_t row = 0; row < kTileBlock; ++row) {
      const float* const a = factors.a[row];
      for (std::int64_t column = 0; column < kTileBlock; column += V::kWidth) {
        float* const c = block.c + row * block.c_row + column;
        V sum = V::load(c);
        V even(0.0f);
        V odd(0.0f);
        for (int pair = 0; pair < 16; ++pair) {
          const V a_even(a[2 * pair]);
          const V a_odd(a[2 * pair + 1]);
          const V b_even = V::load(factors.b_even[pair] + column);
          const V b_odd = V::load(factors.b_odd[pair] + column);
          if constexpr (kAdditions == Additions::kTwoChains) {
            even = flushed(fma(a_even, b_even, even));
            odd = flushed(fma(a_odd, b_odd, odd));
          } else {
            sum = flushed(fma(a_odd, b_odd, sum));
            sum = flushed(fma(a_even, b_even, sum));
          }
        }
        if constexpr (kAdditions == Additions::kTwoChains) sum = flushed(sum + flushed(even + odd));
        sum.store(c);
      }
    }
  }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
