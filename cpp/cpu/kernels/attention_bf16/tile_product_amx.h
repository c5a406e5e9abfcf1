// Tiles of AMX: eight registers of 16 rows of 64 bytes. TDPBF16PS multiplies 16 x 32 by 32 x 16 elements.
//
// The order of its additions, from Intel's Software Developer's Manual (TDPBF16PS, "Operation"): for each element two
// sums from zero, of the products of the even and of the odd elements in order, each step a fused multiply-add; then
// their sum; then that is added to the accumulator. Every one of these is rounded to the nearest even, with subnormal
// numbers taken and given as zero. tile_product_twin.h does the same (kTwoChains).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/attention_bf16/narrow_avx512_bf16.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

struct TileProduct : NarrowByInstruction {
  // Tiles are configured in every thread that multiplies. Released, they cost a switch of threads nothing.
  class Session {
   public:
    Session() {
      // The intrinsic tells the compiler of 8 of these 64 bytes. Constants are in memory whatever it is told.
      alignas(64) static constexpr Shapes kShapes{
          1,
          0,
          {},
          {kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes},
          {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows}};
      _tile_loadconfig(&kShapes);
    }
    ~Session() { _tile_release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

   private:
    static constexpr std::uint16_t kRowBytes = 64;
    static constexpr std::uint8_t kRows = 16;
    struct Shapes {
      std::uint8_t palette;
      std::uint8_t start_row;
      std::uint8_t reserved[14];
      std::uint16_t row_bytes[16];
      std::uint8_t rows[16];
    };
    static_assert(sizeof(Shapes) == 64);
  };

  // Tiles 0 to 3 hold the sums, 4 and 5 rows of a, 6 and 7 columns of b. Inlined into a larger function, the loop would
  // keep its addresses in memory.
  __attribute__((noinline)) static void multiply(const TileBlock& block) {
    wait_for_stores();
    const std::int64_t c_bytes = block.c_row * 4;
    float* const lower = block.c + 16 * block.c_row;
    if (block.adds) {
      _tile_loadd(0, block.c, c_bytes);
      _tile_loadd(1, block.c + 16, c_bytes);
      _tile_loadd(2, lower, c_bytes);
      _tile_loadd(3, lower + 16, c_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const BFloat16* a = block.a;
    const BFloat16* b = block.b;
    const std::int64_t a_bytes = block.a_row * 2;
    for (std::int64_t step = 0; step < block.steps; ++step) {
      _tile_loadd(4, a, a_bytes);
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + block.b_column, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + 16 * block.a_row, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      a += block.a_step;
      b += block.b_step;
    }
    _tile_stored(0, block.c, c_bytes);
    _tile_stored(1, block.c + 16, c_bytes);
    _tile_stored(2, lower, c_bytes);
    _tile_stored(3, lower + 16, c_bytes);
    wait_for_stores();
  }

 private:
  // GCC is not told that loading a tile reads memory: without this it could move or drop the stores before.
  FUSESTEP_HD static void wait_for_stores() { asm volatile("" ::: "memory"); }
};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
