#include "threads/turns.h"

#include <atomic>

#include "threads/cpu_relax.h"

namespace fusestep {

namespace {

// A turn lasts a few microseconds to a fraction of a millisecond. With fewer spins, the wake-up (25 us) would add to
// many waits. With more, a waiting thread would keep the CPU from the thread that has the turn but is not running.
constexpr int kSpins = 2000;

}  // namespace

void wait_for_turn(const std::uint32_t& counter, std::uint32_t turn) noexcept {
  const std::atomic_ref<std::uint32_t> now(const_cast<std::uint32_t&>(counter));
  for (int i = 0; i < kSpins; ++i) {
    if (now.load(std::memory_order_acquire) == turn) return;
    cpu_relax();
  }
  for (std::uint32_t seen = now.load(std::memory_order_acquire); seen != turn;
       seen = now.load(std::memory_order_acquire)) {
    now.wait(seen, std::memory_order_acquire);
  }
}

void pass_turn(std::uint32_t& counter) noexcept {
  const std::atomic_ref<std::uint32_t> now(counter);
  now.fetch_add(1, std::memory_order_acq_rel);
  now.notify_all();
}

}  // namespace fusestep
