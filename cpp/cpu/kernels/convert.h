// Arrays of 16-bit floats to and from float. Elements are converted two vectors at a time, which become one vector of
// 16-bit floats.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kernels/slice.h"
#include "math/lowp.h"
#include "math/rounding.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

inline constexpr int kPair = 2 * Vec<float>::kWidth;

FUSESTEP_HD std::uint16_t* bits_at(BFloat16* p) { return reinterpret_cast<std::uint16_t*>(p); }

// Not inline, because it is rare.
[[gnu::noinline]] void store_pair_with_nan(BFloat16* to, Vec<float> a, Vec<float> b) {
  a.store(to);
  b.store(to + Vec<float>::kWidth);
}

// To the nearest.
FUSESTEP_HD void store_pair(BFloat16* to, Vec<float> a, Vec<float> b) {
  if (!has_nan(a, b)) [[likely]] {
    using Word = Vec<std::uint32_t>;
    Word::store_upper_halves(bits_at(to), nearest_bfloat16(as_words(a)), nearest_bfloat16(as_words(b)));
  } else {
    store_pair_with_nan(to, a, b);
  }
}
FUSESTEP_HD void store_pair(Float16* to, Vec<float> a, Vec<float> b) {
  a.store(to);
  b.store(to + Vec<float>::kWidth);
}

// numbers: 16 random bits of each element, to be rotated for this state.
template <class S>
[[gnu::noinline]] void narrow_stochastic_each(S* to, const float* from, std::int64_t count,
                                              const std::uint16_t* numbers, int state) {
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = narrowed_stochastic(from[i], rotate_number<std::uint32_t>(numbers[i], state), S{});
  }
}
template <class S>
FUSESTEP_HD void store_pair_stochastic(S* to, Vec<float> a, Vec<float> b, const std::uint16_t* numbers, int state) {
  using Word = Vec<std::uint32_t>;
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (!has_nan(a, b)) [[likely]] {
      const Word of_a = rotate_number(Word::load(numbers), state);
      const Word of_b = rotate_number(Word::load(numbers + Word::kWidth), state);
      return Word::store_upper_halves(bits_at(to), stochastic_bfloat16(as_words(a), of_a),
                                      stochastic_bfloat16(as_words(b), of_b));
    }
  }
  float values[kPair];
  a.store(values);
  b.store(values + Vec<float>::kWidth);
  narrow_stochastic_each(to, values, kPair, numbers, state);
}

// Calls pair(i, a, b) with the vectors of values at i, for as many as there are whole pairs, and each(i) for the
// elements after them.
template <class S, class Pair, class Each>
FUSESTEP_HD void for_each_pair(const S* values, std::int64_t count, const Pair& pair, const Each& each) {
  std::int64_t i = 0;
  for (; i + kPair <= count; i += kPair) {
    pair(i, Vec<float>::load(values + i), Vec<float>::load(values + i + Vec<float>::kWidth));
  }
  for (; i < count; ++i) each(i);
}

// These are not inline: they are needed in several places, and work on a few hundred elements.

// compensation: nullptr, or what is added.
template <class S>
[[gnu::noinline]] void widen(float* to, const S* from, const S* compensation, std::int64_t count) {
  constexpr int kWidth = Vec<float>::kWidth;
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(S));
  for_each_pair(
      from, count,
      [&](std::int64_t i, Vec<float> a, Vec<float> b) {
        __builtin_prefetch(from + i + kAhead, 1);
        if (compensation != nullptr) {
          __builtin_prefetch(compensation + i + kAhead, 1);
          a = a + Vec<float>::load(compensation + i);
          b = b + Vec<float>::load(compensation + i + kWidth);
        }
        a.store(to + i);
        b.store(to + i + kWidth);
      },
      [&](std::int64_t i) {
        to[i] = to_float(from[i]);
        if (compensation != nullptr) to[i] += to_float(compensation[i]);
      });
}

// To the nearest.
template <class S>
[[gnu::noinline]] void narrow(S* to, const float* from, std::int64_t count) {
  for_each_pair(
      from, count, [&](std::int64_t i, Vec<float> a, Vec<float> b) { store_pair(to + i, a, b); },
      [&](std::int64_t i) { to[i] = narrowed(from[i], S{}); });
}

// numbers: 16 random bits of each element, as they are.
template <class S>
[[gnu::noinline]] void narrow_stochastic(S* to, const float* from, std::int64_t count, const std::uint16_t* numbers) {
  for_each_pair(
      from, count,
      [&](std::int64_t i, Vec<float> a, Vec<float> b) {
        store_pair_stochastic(to + i, a, b, numbers + i, kOfParameter);
      },
      [&](std::int64_t i) { to[i] = narrowed_stochastic(from[i], numbers[i], S{}); });
}

// As a sum of two: both halves of `split`.
template <class S>
[[gnu::noinline]] void narrow_split(S* high, S* low, const float* from, std::int64_t count) {
  constexpr int kWidth = Vec<float>::kWidth;
  const auto each = [&](std::int64_t i) {
    const SplitFloat<S> parts = split<S>(from[i]);
    high[i] = parts.high;
    low[i] = parts.low;
  };
  for_each_pair(
      from, count,
      [&](std::int64_t i, Vec<float> a, Vec<float> b) {
        store_pair(high + i, a, b);
        const Vec<float> rest_a = a - Vec<float>::load(high + i);
        const Vec<float> rest_b = b - Vec<float>::load(high + i + kWidth);
        if (!has_nan(rest_a - rest_a, rest_b - rest_b)) [[likely]] {  // all are finite
          store_pair(low + i, rest_a, rest_b);
        } else {
          for (int k = 0; k < kPair; ++k) each(i + k);
        }
      },
      each);
}

// Values of a parameter or a state to its 16 bits. compensation: nullptr, or where what the rounding leaves goes.
// numbers: nullptr, or those of stochastic rounding.
template <class S>
FUSESTEP_HD void round_values(S* to, S* compensation, const float* values, std::int64_t count,
                              const std::uint16_t* numbers) {
  if (numbers != nullptr) return narrow_stochastic(to, values, count, numbers);
  if (compensation != nullptr) return narrow_split(to, compensation, values, count);
  narrow(to, values, count);
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
