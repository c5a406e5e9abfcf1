// Which elements dropout keeps: one rule for attention weights and for plain dropout, on every device.
//
// The four words of one Philox call give eight 16-bit numbers to eight neighbouring elements. The counter is
//   attention  (key / 8, query, batch * heads + head, offset)
//   plain      (lower and upper word of element / 8, 0, offset), elements counted in C order
// with positions of the tensor itself: never of a tile or a thread.
#pragma once

#include <cstdint>

#include "math/philox.h"

namespace fusestep {

inline constexpr int kDropoutGroup = kPhiloxNumbers;  // elements that share a Philox call

// A number; or where it lies in the memory of the device that draws, so that each replay of a CUDA graph may find
// another one there.
struct DropoutSeed {
  std::uint64_t number = 0;
  const std::uint64_t* at = nullptr;

  FUSESTEP_HD std::uint64_t value() const { return at != nullptr ? *at : number; }
};

// The probability is rounded to a multiple of 2^-16, and the survivors are scaled for the rounded one: the expectation
// stays exact.
struct DropoutRule {
  std::uint32_t threshold;  // numbers below are dropped; 0: nothing is; 65536: everything is
  DropoutSeed seed;
  std::uint32_t offset;

  FUSESTEP_HD bool drops() const { return threshold != 0; }
  FUSESTEP_HD bool drops_all() const { return threshold == 65536u; }
  // 0 where everything is dropped: there are no survivors to scale.
  FUSESTEP_HD double scale() const { return drops_all() ? 0.0 : 65536.0 / (65536.0 - threshold); }
};

// p: in [0, 1]. Below 1 something may survive, however close p is.
FUSESTEP_HD DropoutRule dropout_rule(double p, DropoutSeed seed, std::uint32_t offset) {
  const auto threshold = static_cast<std::uint32_t>(p * 65536.0 + 0.5);
  return {p < 1 && threshold > 65535u ? 65535u : threshold, seed, offset};
}

// Plain dropout of an element, and with a residual added; `kept` is the element, or 0 where it is dropped. V: a number
// or a vector of them.
template <class V>
FUSESTEP_HD V dropout_value(V kept, V scale) {
  return kept * scale;
}
template <class V>
FUSESTEP_HD V dropout_value(V kept, V scale, V residual) {
  return fma(kept, scale, residual);
}

FUSESTEP_HD PhiloxWords<std::uint32_t> attention_dropout_words(const DropoutRule& rule, std::int64_t key,
                                                               std::int64_t query, std::int64_t batch_head) {
  return philox<std::uint32_t>({{static_cast<std::uint32_t>(key / kDropoutGroup), static_cast<std::uint32_t>(query),
                                 static_cast<std::uint32_t>(batch_head), rule.offset}},
                               rule.seed.value());
}

FUSESTEP_HD PhiloxWords<std::uint32_t> dropout_words(const DropoutRule& rule, std::int64_t element) {
  const auto group = static_cast<std::uint64_t>(element) / kDropoutGroup;
  return philox<std::uint32_t>(
      {{static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32), 0u, rule.offset}},
      rule.seed.value());
}

}  // namespace fusestep
