// Philox4x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four random words
// as a pure function of a counter and a key. Seven rounds pass BigCrush, by its authors' tests.
//
// The word type is a template argument: std::uint32_t on any host or device, a vector of them on the CPU. It offers ^,
// + and mul_wide.
#pragma once

#include <cstdint>

#include "math/hd.h"

namespace fusestep {

inline constexpr int kPhiloxRounds = 7;
inline constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
inline constexpr std::uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
inline constexpr std::uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

// The upper and the lower word of a * b.
FUSESTEP_HD void mul_wide(std::uint32_t a, std::uint32_t b, std::uint32_t& high, std::uint32_t& low) {
  const std::uint64_t product = static_cast<std::uint64_t>(a) * b;
  high = static_cast<std::uint32_t>(product >> 32);
  low = static_cast<std::uint32_t>(product);
}

template <class W>
struct PhiloxWords {
  W word[4];
};

template <class W>
FUSESTEP_HD PhiloxWords<W> philox_round(const PhiloxWords<W>& counter, std::uint32_t key0, std::uint32_t key1) {
  W high0, low0, high1, low1;
  mul_wide(kPhiloxMultiplier0, counter.word[0], high0, low0);
  mul_wide(kPhiloxMultiplier1, counter.word[2], high1, low1);
  return {{high1 ^ counter.word[1] ^ W(key0), low1, high0 ^ counter.word[3] ^ W(key1), low0}};
}

// seed: the 64-bit key, its lower word first.
template <class W>
FUSESTEP_HD PhiloxWords<W> philox(PhiloxWords<W> counter, std::uint64_t seed) {
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, key0, key1);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

inline constexpr int kPhiloxNumbers = 8;  // of 16 bits, from one call

// 16-bit number `i` of the eight that a call gives: the lower half of a word comes first.
FUSESTEP_HD std::uint32_t philox_number(const PhiloxWords<std::uint32_t>& words, int i) {
  return words.word[i / 2] >> (i % 2 * 16) & 0xffffu;
}

}  // namespace fusestep
