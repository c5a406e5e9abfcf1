// How a float32 result is stored as a 16-bit float: to the nearest (math/lowp.h), to one of its two neighbours at
// random, or as a sum of two 16-bit floats.
#pragma once

#include <cstdint>

#include "math/lowp.h"
#include "math/philox.h"

namespace fusestep {

// How the update of a parameter is rounded, beside the dtypes of its tensors.
enum class Rounding : std::uint8_t {
  nearest,
  stochastic,  // up or down with probabilities that make the expectation exact
  kahan,       // the parameter is the sum of two 16-bit floats, itself and a compensation
  master       // the parameter is a rounded copy of a float32 tensor
};

// Stochastic rounding draws 16 bits for each element: a function of the seed, the number of the step, the number of the
// parameter and the position of the element in C order, in the whole tensor where it is a shard, and of nothing else.
// So the bits are the same on every device, with any number of threads and processes. Eight neighbouring elements share
// a Philox call, with the counter
//   (lower and upper word of element / 8, parameter, step)
// kRoundingStream keeps the key apart from that of a dropout mask with the same seed.
inline constexpr int kRoundingGroup = kPhiloxNumbers;
inline constexpr std::uint64_t kRoundingStream = 0x9d3f6c1b5a2e8047u;

// Where the elements of a shard are in the whole tensor: both counted in C order, and the shard consists of equally
// long runs of neighbours, equally far apart. The default: the tensor is whole.
struct ShardPositions {
  std::int64_t first = 0;        // of the shard's first element
  std::int64_t run = INT64_MAX;  // elements
  std::int64_t pitch = 0;        // from the start of a run to the start of the next

  FUSESTEP_HD bool is_whole() const { return first == 0 && run == INT64_MAX; }

  FUSESTEP_HD std::int64_t of(std::int64_t element) const {
    return element < run ? first + element : first + element / run * pitch + element % run;
  }
  // Whether `count` elements from a multiple of `count` on always follow each other and share a group of numbers.
  FUSESTEP_HD bool keeps_packs(int count) const {
    return first % count == 0 && (run == INT64_MAX || (run % count == 0 && pitch % count == 0));
  }
  // How many elements follow each other from this one on.
  FUSESTEP_HD std::int64_t left(std::int64_t element) const {
    return element < run ? run - element : run - element % run;
  }
};

struct RoundingDraw {
  std::uint64_t seed;
  std::uint32_t parameter;
  std::uint32_t step;  // modulo 2^32
};

// `group`: element / 8 of each lane of W. Its lower words must not overflow within a vector.
template <class W>
FUSESTEP_HD PhiloxWords<W> rounding_words(const RoundingDraw& draw, W group_low, std::uint32_t group_high) {
  return philox<W>({{group_low, W(group_high), W(draw.parameter), W(draw.step)}}, draw.seed ^ kRoundingStream);
}

// The 16 bits of the parameter serve its states too, rotated: each of them is uniform. W: a word, or a vector of them.
inline constexpr int kOfParameter = -1;  // in place of the number of a state
template <class W>
FUSESTEP_HD W rotate_number(W number, int state) {
  if (state == kOfParameter) return number;
  const int by = 5 * (state + 1);
  return (number << by | number >> (16 - by)) & W(0xffffu);
}

// Of a float's bits: the upper half of the result is one of its two neighbours (see below). Not for NaN.
template <class W>
FUSESTEP_HD W stochastic_bfloat16(W bits, W number) {
  return bits + number;
}

// Of the two neighbours of x the one away from zero with probability (|x| - |lower|) / (their distance), rounded to a
// multiple of 2^-16 (of 2^-13 for normal Float16, whose distance has 13 bits). number: 16 random bits.
FUSESTEP_HD BFloat16 to_bfloat16_stochastic(float x, std::uint32_t number) {
  const std::uint32_t bits = bits_of(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  const std::uint32_t rounded = stochastic_bfloat16(bits, number) >> 16;
  return {static_cast<std::uint16_t>(finite ? rounded : to_bfloat16(x).bits)};
}

FUSESTEP_HD Float16 to_float16_stochastic(float x, std::uint32_t number) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) return to_float16(x);  // 65536 and above, inf, NaN
  std::uint32_t half;
  if (magnitude < 0x38800000u) {  // below 2^-14: multiples of 2^-24, so of 2^16 in units of 2^-40
    half = (static_cast<std::uint32_t>(static_cast<std::int32_t>(float_of(magnitude) * 0x1p40f)) + number) >> 16;
  } else {
    half = (magnitude - 0x38000000u + (number >> 3)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

FUSESTEP_HD BFloat16 narrowed_stochastic(float x, std::uint32_t number, BFloat16 /*as*/) {
  return to_bfloat16_stochastic(x, number);
}
FUSESTEP_HD Float16 narrowed_stochastic(float x, std::uint32_t number, Float16 /*as*/) {
  return to_float16_stochastic(x, number);
}

// high + low is value, as far as two 16-bit floats hold it: both are rounded to the nearest.
template <class S>
struct SplitFloat {
  S high;
  S low;
};

FUSESTEP_HD BFloat16 narrowed(float x, BFloat16 /*as*/) { return to_bfloat16(x); }
FUSESTEP_HD Float16 narrowed(float x, Float16 /*as*/) { return to_float16(x); }

template <class S>
FUSESTEP_HD SplitFloat<S> split(float value) {
  const S high = narrowed(value, S{});
  const float rest = value - to_float(high);
  // An infinite parameter must stay one: where `high` is infinite, `rest` is infinite or NaN.
  const bool finite = rest - rest == 0;
  return {high, narrowed(finite ? rest : 0.0f, S{})};
}

}  // namespace fusestep
