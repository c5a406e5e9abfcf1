// Blocks of moments in 8 bits (math/eight_bit.h) to and from float.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/slice.h"
#include "math/eight_bit.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Not inline: every variant of an update calls these. `count` is at most kMomentBlock, and `values` has room for that
// many: what follows the last element is padding.
template <bool kSquare>
[[gnu::noinline]] void dequantize_block(float* values, const std::uint8_t* codes, float scale, std::int64_t count) {
  constexpr int kWidth = Vec<float>::kWidth;
  std::uint8_t padded[kMomentBlock];
  if (count < kMomentBlock) {
    memset(padded, 0, sizeof padded);
    memcpy(padded, codes, static_cast<std::size_t>(count));
    codes = padded;
  } else {
    // The block after the next one: between two blocks lies the work on a kibibyte of each float operand.
    for (int line = 0; line < kMomentBlock; line += 64) __builtin_prefetch(codes + 2 * kMomentBlock + line, 1);
  }
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const auto code = Vec<std::uint32_t>::load(codes + i);
    (decode_moment<kSquare, Vec<float>>(code) * Vec<float>(scale)).store(values + i);
  }
}

// Returns the scale.
template <bool kSquare>
[[gnu::noinline]] float quantize_block(std::uint8_t* codes, float* values, std::int64_t count) {
  using Word = Vec<std::uint32_t>;
  constexpr int kWidth = Vec<float>::kWidth;
  constexpr int kStep = 4 * kWidth;
  const std::int64_t end = (count + kStep - 1) / kStep * kStep;
  for (std::int64_t i = count; i < end; ++i) values[i] = 0;

  Word greatest(0u);
  for (std::int64_t i = 0; i < end; i += kWidth) {
    greatest = max(greatest, as_words(Vec<float>::load(values + i)) & Word(0x7fffffffu));
  }
  std::uint32_t lanes[kWidth];
  greatest.store(lanes);
  std::uint32_t most = 0;
  for (const std::uint32_t lane : lanes) most = fusestep::max(most, lane);
  const std::uint32_t scale = moment_scale(most);
  const float inverse = inverse_moment_scale(scale);
  if (inverse != inverse) {  // the bits of NaN differ between machines
    memset(codes, MomentCode<kSquare>::kGreatest, static_cast<std::size_t>(count));
    return float_of(scale);
  }

  std::uint8_t padded[kMomentBlock];
  std::uint8_t* const to = count < kMomentBlock ? padded : codes;
  for (std::int64_t i = 0; i < end; i += kStep) {
    Word code[4];
    for (int k = 0; k < 4; ++k) {
      const Vec<float> fraction = Vec<float>::load(values + i + k * kWidth) * Vec<float>(inverse);
      code[k] = encode_moment<kSquare>(as_words(fraction));
    }
    Word::store_bytes(to + i, code[0], code[1], code[2], code[3]);
  }
  if (count < kMomentBlock) memcpy(codes, padded, static_cast<std::size_t>(count));
  return float_of(scale);
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
