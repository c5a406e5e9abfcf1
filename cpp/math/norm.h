// Norms of a list of gradients, and the fixed order in which every backend adds them up.
//
// Norms accumulate in double: squares of floats are exact there and cannot overflow, and reading memory is slower than
// converting. Element i of a piece of memory goes to lane i % 32; the lanes of a slice are halved onto each other; the
// slices are added one after another in groups, and the groups one after another. So no norm depends on threads,
// instruction sets or devices, and a group is what a GPU's thread can add up while others do the same.
#pragma once

#include <cstdint>

#include "math/hd.h"

namespace fusestep {

enum class NormKind { one, two, inf };

inline constexpr int kNormLanes = 32;
inline constexpr std::int64_t kNormGroup = 64;  // slices

// Each has accumulate(total, element), combine(total, total) and finish(total), zero being the start of all.
struct NormOne {
  template <class V>
  FUSESTEP_HD static V accumulate(V total, V x) {
    return total + abs(x);
  }
  FUSESTEP_HD static double combine(double a, double b) { return a + b; }
  FUSESTEP_HD static double finish(double total) { return total; }
};

struct NormTwo {
  template <class V>
  FUSESTEP_HD static V accumulate(V total, V x) {
    return fma(x, x, total);
  }
  FUSESTEP_HD static double combine(double a, double b) { return a + b; }
  FUSESTEP_HD static double finish(double total) { return sqrt(total); }
};

struct NormInf {
  template <class V>
  FUSESTEP_HD static V accumulate(V total, V x) {
    return max(total, abs(x));
  }
  FUSESTEP_HD static double combine(double a, double b) { return max(a, b); }
  FUSESTEP_HD static double finish(double total) { return total; }
};

// Calls visit(Norm{}) for the kind.
template <class Visit>
auto with_norm(NormKind kind, const Visit& visit) {
  if (kind == NormKind::one) return visit(NormOne{});
  if (kind == NormKind::two) return visit(NormTwo{});
  return visit(NormInf{});
}

// partial[0..count) in order.
template <class Norm>
FUSESTEP_HD double combine_in_order(const double* partial, std::int64_t count) {
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total = Norm::combine(total, partial[i]);
  return total;
}

// The total of all slices.
template <class Norm>
FUSESTEP_HD double combine_slices(const double* partial, std::int64_t slices) {
  double total = 0;
  for (std::int64_t first = 0; first < slices; first += kNormGroup) {
    const std::int64_t count = slices - first < kNormGroup ? slices - first : kNormGroup;
    total = Norm::combine(total, combine_in_order<Norm>(partial + first, count));
  }
  return total;
}

}  // namespace fusestep
