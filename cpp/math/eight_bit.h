// Moments in 8 bits: a code for each element and one float, the greatest absolute value, for each block of 256
// (Dettmers et al., arXiv:2110.02861, have blocks and a floating code too; this one is computed, not looked up).
//
// A code stands for a fraction of the block's scale. Magnitudes from 1 down are the floats with four bits of mantissa
// (sixteen in each power of two) for the upper half of the codes, and with three bits for the lower half: of signed
// moments to 2^-4 and then to 2^-11.75, of squares to 2^-8 and then to 2^-23.8. So the relative error of a moment is at
// most 1/32 and 1/16, wherever it lies in the range. The bits of a float grow with its logarithm, and all of this is
// shifts of their upper half: no lower bit of a fraction has a say in its code. A vector holds twice as many halves.
//
// Signed moments have a sign bit and a zero. Squares have neither: one that became zero would divide by eps alone.
#pragma once

#include <cstdint>

#include "math/hd.h"
#include "math/lowp.h"

namespace fusestep {

// Elements that share a scale: neighbours in the order of the tensor's memory, counted from its start.
inline constexpr int kMomentBlock = 256;

FUSESTEP_HD constexpr std::int64_t moment_blocks(std::int64_t numel) {
  return (numel + kMomentBlock - 1) / kMomentBlock;
}

FUSESTEP_HD std::uint32_t max(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }
// x / 2^bits to the nearest, halves up. x is below 2^15: vectors multiply signed numbers.
FUSESTEP_HD std::uint32_t shift_rounded(std::uint32_t x, int bits) { return (x + (1u << (bits - 1))) >> bits; }
// max(a - b, 0)
FUSESTEP_HD std::uint32_t excess(std::uint32_t a, std::uint32_t b) { return a > b ? a - b : 0; }
// 0 where `condition`, below 2^15, is 0.
FUSESTEP_HD std::uint32_t where_not_zero(std::uint32_t condition, std::uint32_t x) { return condition != 0 ? x : 0; }

// The magnitude of code c has the upper half (c + kOffset) << 3 from kBend up. Below, it is twice as far from kBend as
// that: the same steps on a float with one bit of mantissa less.
template <bool kSquare>
struct MomentCode;
template <>
struct MomentCode<false> {
  static constexpr std::uint16_t kGreatest = 127;  // stands for 1
  static constexpr std::uint16_t kOffset = 0x7f0 - kGreatest;
  static constexpr std::uint16_t kBend = (63 + kOffset) << 3;  // 2^-4
};
template <>
struct MomentCode<true> {
  static constexpr std::uint16_t kGreatest = 255;
  static constexpr std::uint16_t kOffset = 0x7f0 - kGreatest;
  static constexpr std::uint16_t kBend = (127 + kOffset) << 3;  // 2^-8
};

// The scale of a block, from the greatest of the bits of its absolute values. A block with an infinity or a NaN becomes
// NaN as a whole. One of subnormal numbers is scaled by the least normal one, whose inverse is finite.
FUSESTEP_HD float moment_scale(std::uint32_t greatest) {
  return float_of(greatest < 0x7f800000u ? max(greatest, std::uint32_t{0x00800000u}) : 0x7fc00000u);
}

// The codes of a block's elements are those of their values times this. Of a block of NaN it is NaN.
FUSESTEP_HD float inverse_moment_scale(float scale) { return 1.0f / scale; }

// The code of a fraction of at most 1, given as the upper half of its bits: that of the nearest magnitude, the greater
// of two that are equally near. Signed fractions for which the nearest would be one step below the least become 0.
template <bool kSquare, class W>
FUSESTEP_HD W encode_moment(W half) {
  using Code = MomentCode<kSquare>;
  const W magnitude = half & W(0x7fffu);
  const W twice = magnitude + max(magnitude, W(Code::kBend));
  const W code = excess(shift_rounded(twice, 4), W(Code::kOffset));
  if constexpr (kSquare) return code;
  return code | (half >> 8 & W(0x80u));
}

// The upper half of the bits of the fraction that a code stands for; the code is given shifted to the left by 8.
template <bool kSquare, class W>
FUSESTEP_HD W decode_moment(W code) {
  using Code = MomentCode<kSquare>;
  const W magnitude = kSquare ? code : code & W(0x7f00u);
  const W fine = (magnitude >> 5) + W(Code::kOffset << 3);
  const W half = fine - excess(W(Code::kBend), fine);
  if constexpr (kSquare) return half;
  return where_not_zero(magnitude, half) | (code & W(0x8000u));
}

}  // namespace fusestep
