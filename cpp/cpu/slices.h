// Running the slices of a job (jobs/slices.h) on several threads.
#pragma once

#include <algorithm>

#include "jobs/slices.h"
#include "threads/threads.h"

namespace fusestep {

// body(slice) for every slice of `numel` elements. A thread claims neighbouring slices together, up to a million
// elements: the longer the memory that it visits in order, the better the hardware prefetches. With eight claims a
// thread no thread waits long for the last one.
template <class Body>
void for_each_slice(std::int64_t numel, const Body& body) {
  const std::int64_t count = slices(numel);
  const std::int64_t a_claim = std::clamp<std::int64_t>(count / (8 * num_threads()), 1, 64);
  const auto run_claim = [&](std::int64_t claim) {
    const std::int64_t end = std::min(count, (claim + 1) * a_claim);
    for (std::int64_t slice = claim * a_claim; slice < end; ++slice) body(slice);
  };
  parallel_for((count + a_claim - 1) / a_claim, run_claim);
}

}  // namespace fusestep
