// The product of tiles that this object is compiled for. Each offers TileProduct, all static:
//   multiply(block)            a block of 2 x 2 tiles (TileBlock, cpu/kernel_table.h)
//   narrow(from, to)           32 floats of a row of the left factor, rounded
//   narrow_pairs(even, odd, to)  16 columns of a row pair of the right factor: even[0], odd[0], even[1], ... rounded
//   Session                    lives while a thread multiplies
// Rounding is to the nearest, subnormal numbers are 0 of their sign on the way in and out.
#pragma once

#if defined(FUSESTEP_TILES_AMX)
#include "cpu/kernels/attention_bf16/tile_product_amx.h"
#elif defined(FUSESTEP_TILES_AVX512_BF16)
#include "cpu/kernels/attention_bf16/tile_product_avx512_bf16.h"
#else
#include "cpu/kernels/attention_bf16/tile_product_twin.h"
#endif
