// Blocks of moments in 8 bits (math/eight_bit.h) to and from float.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/slice.h"
#include "math/eight_bit.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

using MomentHalves = Vec<std::uint16_t>;

// As many elements as codes are stored together.
inline constexpr int kMomentStep = 4 * Vec<float>::kWidth;

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
  for (std::int64_t i = 0; i < count; i += 2 * kWidth) {
    Vec<float> a, b;
    decode_moment<kSquare>(MomentHalves::load_upper_bytes(codes + i)).as_upper_halves(a, b);
    (a * Vec<float>(scale)).store(values + i);
    (b * Vec<float>(scale)).store(values + i + kWidth);
  }
}

// The scale of a block. Zeros are put behind its last element.
[[gnu::noinline]] float scale_block(float* values, std::int64_t count) {
  using Word = Vec<std::uint32_t>;
  constexpr int kWidth = Word::kWidth;
  const std::int64_t end = (count + kMomentStep - 1) / kMomentStep * kMomentStep;
  for (std::int64_t i = count; i < end; ++i) values[i] = 0;
  Word greatest[4] = {0u, 0u, 0u, 0u};  // of four vectors each, which wait for none of the others
  for (std::int64_t i = 0; i < end; i += kMomentStep) {
    for (int k = 0; k < 4; ++k) {
      const Word magnitude = as_words(Vec<float>::load(values + i + k * kWidth)) & Word(0x7fffffffu);
      greatest[k] = max(greatest[k], magnitude);
    }
  }
  std::uint32_t lanes[kWidth];
  max(max(greatest[0], greatest[1]), max(greatest[2], greatest[3])).store(lanes);
  std::uint32_t most = 0;
  for (const std::uint32_t lane : lanes) most = fusestep::max(most, lane);
  return moment_scale(most);
}

// After scale_block.
template <bool kSquare>
[[gnu::noinline]] void quantize_block(std::uint8_t* codes, const float* values, float scale, std::int64_t count) {
  constexpr int kWidth = Vec<float>::kWidth;
  const float inverse = inverse_moment_scale(scale);
  if (inverse != inverse) {  // the bits of NaN differ between machines
    memset(codes, MomentCode<kSquare>::kGreatest, static_cast<std::size_t>(count));
    return;
  }
  std::uint8_t padded[kMomentBlock];
  std::uint8_t* const to = count < kMomentBlock ? padded : codes;
  const auto encoded = [&](const float* from) {
    const Vec<float> a = Vec<float>::load(from) * Vec<float>(inverse);
    const Vec<float> b = Vec<float>::load(from + kWidth) * Vec<float>(inverse);
    return encode_moment<kSquare>(MomentHalves::upper_halves(a, b));
  };
  for (std::int64_t i = 0; i < count; i += kMomentStep) {
    MomentHalves::store_lower_bytes(to + i, encoded(values + i), encoded(values + i + 2 * kWidth));
  }
  // NOLINTNEXTLINE(clang-analyzer-unix.cstring.UninitializedRead): there is at least one element
  if (count < kMomentBlock) memcpy(codes, padded, static_cast<std::size_t>(count));
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
