// How an optimizer declares its hyperparameters: once, as a table of name, place, range and meaning. Reading them from
// Python, checking them, their defaults and the documentation of fusestep.ops all come from these tables.
#pragma once

#include "math/hd.h"

namespace fusestep {

// Two decay rates that torch passes as one tuple, betas=(0.9, 0.999).
struct Betas {
  double beta1;
  double beta2;
};

enum class Range { finite, not_negative, below_one };  // below_one: [0, 1)

// An option that is one of a few words; `value` is the position of the word.
struct Choice {
  int value;
  const char* words[2];
};

// Options that are each in range and do not go together. `option` is nullptr where all is well.
struct Conflict {
  const char* option = nullptr;
  const char* expected = nullptr;
  const char* got = nullptr;
};

// The tensors an optimizer keeps for each parameter besides the parameter itself.
inline constexpr int kMaxStates = 3;

// Which of them a variant uses is a set of bits, StateSet{0b011}: a plain value, so that no object emits a symbol for
// it.
using StateSet = unsigned;
FUSESTEP_HD constexpr bool uses(StateSet states, int k) { return (states >> k & 1) != 0; }

// A variant says of its states, as such sets: kStates, those that it uses; kSquares, those that are never negative;
// kDifference, those whose small difference is what matters: 8 bits do not hold it.

}  // namespace fusestep
