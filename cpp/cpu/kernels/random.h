// 16-bit random numbers for neighbouring elements, from vectors of Philox calls.
#pragma once

#include <cstdint>

#include "math/philox.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// The elements that one vector of Philox calls serves.
inline constexpr int kRandomBlock = kPhiloxNumbers * Vec<std::uint32_t>::kWidth;

// The numbers of elements [first, first + kRandomBlock). words(low, high) makes the Philox calls of the groups of eight
// elements whose numbers are low (a vector) and high << 32. `first` is a multiple of kRandomBlock, so that no lane
// carries into the upper word.
template <class Words>
FUSESTEP_HD void random_block(std::int64_t first, std::uint16_t* numbers, const Words& words) {
  using Word = Vec<std::uint32_t>;
  const auto group = static_cast<std::uint64_t>(first) / kPhiloxNumbers;
  const auto [word] = words(Word::iota(static_cast<std::uint32_t>(group)), static_cast<std::uint32_t>(group >> 32));
  Word::store_numbers(numbers, word[0], word[1], word[2], word[3]);
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
