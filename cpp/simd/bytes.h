// Bytes for instruction sets whose headers have nothing better.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/hd.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Bit i tells whether byte i of 32 is not zero.
FUSESTEP_HD std::uint32_t nonzero_bytes(const std::uint8_t* p) {
  std::uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    std::uint64_t bytes;
    memcpy(&bytes, p + 8 * i, sizeof bytes);
    const std::uint64_t low = 0x7f7f7f7f7f7f7f7fu;
    const std::uint64_t ones = ((((bytes & low) + low) | bytes) & ~low) >> 7;
    bits |= static_cast<std::uint32_t>(ones * 0x0102040810204080u >> 56) << 8 * i;  // one bit of each byte, in order
  }
  return bits;
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
