// Moments in 8 bits: a code for each element and one float, the greatest absolute value, for each block of 256
// (Dettmers et al., arXiv:2110.02861, have blocks and a floating code too; this one is computed, not looked up).
//
// A code stands for a fraction of the block's scale. Magnitudes from 1 down are the floats with four bits of mantissa
// (sixteen in each power of two) for the upper half of the codes, and with three bits for the lower half: of signed
// moments to 2^-4 and then to 2^-11.75, of squares to 2^-8 and then to 2^-23.8. So the relative error of a moment is at
// most 1/32 and 1/16, wherever it lies in the range. The bits of a float grow with its logarithm, and all of this is
// shifts of them.
//
// Signed moments have a sign bit and a zero. Squares have neither: one that became zero would divide by eps alone.
#pragma once

#include <cstdint>

#include "math/exp2.h"
#include "math/hd.h"
#include "math/lowp.h"

namespace fusestep {

// Elements that share a scale: neighbours in the order of the tensor's memory, counted from its start.
inline constexpr int kMomentBlock = 256;

FUSESTEP_HD constexpr std::int64_t moment_blocks(std::int64_t numel) {
  return (numel + kMomentBlock - 1) / kMomentBlock;
}

FUSESTEP_HD std::uint32_t as_words(float x) { return bits_of(x); }
FUSESTEP_HD float as_float(std::uint32_t x) { return float_of(x); }
FUSESTEP_HD std::uint32_t min(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }
FUSESTEP_HD std::uint32_t max(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

// The magnitude of code c has the bits min((c + kFine) << 19, (c + kCoarse) << 20): steps of the fine kind above, of
// the coarse kind below the value at which both are equal.
template <bool kSquare>
struct MomentCode;
template <>
struct MomentCode<false> {
  static constexpr std::uint32_t kGreatest = 127;  // stands for 1
  static constexpr std::uint32_t kFine = 0x7f0 - kGreatest;
  static constexpr std::uint32_t kCoarse = 0x3d8 - 63;  // they meet at code 63, 2^-4
};
template <>
struct MomentCode<true> {
  static constexpr std::uint32_t kGreatest = 255;
  static constexpr std::uint32_t kFine = 0x7f0 - kGreatest;
  static constexpr std::uint32_t kCoarse = 0x3b8 - 127;  // at code 127, 2^-8
};

// The scale of a block, as bits, from the greatest of the bits of its absolute values. A block with an infinity or a
// NaN becomes NaN as a whole. One of subnormal numbers is scaled by the least normal one, whose inverse is finite.
FUSESTEP_HD std::uint32_t moment_scale(std::uint32_t greatest) {
  return greatest < 0x7f800000u ? max(greatest, std::uint32_t{0x00800000u}) : 0x7fc00000u;
}

// The codes of a block's elements are those of their values times this. Of a block of NaN it is NaN.
FUSESTEP_HD float inverse_moment_scale(std::uint32_t scale) { return 1.0f / float_of(scale); }

// The code of a fraction, given as its bits, at most 1: that of the nearest magnitude, the greater of two that are
// equally near. Signed fractions for which the nearest would be one step below the least become 0.
template <bool kSquare, class W>
FUSESTEP_HD W encode_moment(W fraction) {
  using Code = MomentCode<kSquare>;
  const W magnitude = fraction & W(0x7fffffffu);
  const W fine = (magnitude + W(0x40000u)) >> 19;
  const W coarse = ((magnitude + W(0x80000u)) >> 20) + W(Code::kFine - Code::kCoarse);
  const W code = max(max(fine, coarse), W(Code::kFine)) + W(0u - Code::kFine);
  if constexpr (kSquare) return code;
  return code | (fraction >> 24 & W(0x80u));
}

// The fraction that a code stands for.
template <bool kSquare, class V, class W>
FUSESTEP_HD V decode_moment(W code) {
  using Code = MomentCode<kSquare>;
  const W magnitude = kSquare ? code : code & W(0x7fu);
  const V value = as_float(min((magnitude + W(Code::kFine)) << 19, (magnitude + W(Code::kCoarse)) << 20));
  if constexpr (kSquare) return value;
  const V least = as_float(W((Code::kCoarse + 1u) << 20));
  return as_float(as_words(zero_below(value, value, least)) | (code & W(0x80u)) << 24);
}

}  // namespace fusestep
