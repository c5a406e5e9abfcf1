// The work of one parallel_for, and how threads claim its indices. Both runtimes use it (openmp.h, pool.h).
#pragma once

#include <atomic>
#include <cstdint>

#include "threads/threads.h"

namespace fusestep::detail {

// True while this thread runs bodies: a parallel_for from inside one stays in its thread.
inline constinit thread_local bool inside_parallel_for = false;

struct Work {
  const Task task;
  const void* const body;
  const std::int64_t count;
  std::atomic<std::int64_t> next{0};

  Work(std::int64_t n, Task t, const void* b) : task(t), body(b), count(n) {}

  // Relaxed order is enough: the counter only distributes indices. What the bodies write becomes visible to the caller
  // when the runtime joins the threads.
  void claim_until_none_left() noexcept {
    const bool was_inside = inside_parallel_for;
    inside_parallel_for = true;
    for (std::int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed))
      task(body, i);
    inside_parallel_for = was_inside;
  }
};

}  // namespace fusestep::detail
