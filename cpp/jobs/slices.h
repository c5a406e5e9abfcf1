// The unit of work of an elementwise job. Its tensors are concatenated to one sequence of elements, and that is cut
// into slices: a slice may hold a thousand small tensors or a piece of a large one, so a list of small tensors costs
// what its elements cost. Slices depend on the list alone, never on the number of threads: a partial result that
// belongs to a slice is the same on any number of them.
#pragma once

#include <cstdint>

namespace fusestep {

inline constexpr std::int64_t kSliceElements = 16384;

constexpr std::int64_t slices(std::int64_t numel) { return (numel + kSliceElements - 1) / kSliceElements; }

}  // namespace fusestep
