#include "threads/pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>

#include "threads/cpu_relax.h"

namespace fusestep::pool {
namespace {

// About the cost of waking a sleeping worker (25 us on a virtual machine; 0.6 us while it still spins). Long enough to
// stay awake between the norm of a step and its update, short enough not to take the core from other threads.
constexpr std::chrono::microseconds spin_time{20};

// Waits until `word` differs from `old`: spins for spin_time, then sleeps in the kernel.
template <class T>
void wait_for_change(const std::atomic<T>& word, T old) noexcept {
  const auto until = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 16; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < until);
  word.wait(old, std::memory_order_acquire);
}

// Signals must be delivered to the program's own threads: a new thread inherits a mask with all signals blocked.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// One caller at a time offers its work with a number of seats. A worker that wakes up takes a seat, or sleeps again
// when none is left. When all indices are claimed, the caller withdraws the remaining seats and waits only for the
// workers that took one, so a worker that wakes late costs nothing.
class Pool {
 public:
  bool run(detail::Work& work, int threads) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    const int wanted = static_cast<int>(std::min<std::int64_t>(threads, work.count)) - 1;
    while (workers_ < wanted && start_worker()) ++workers_;
    const int seats = std::min(wanted, workers_);

    work_ = &work;
    seats_.store(seats, std::memory_order_release);
    offers_.fetch_add(1);
    if (seats == workers_)
      offers_.notify_all();
    else
      for (int i = 0; i < seats; ++i) offers_.notify_one();

    work.claim_until_none_left();

    const int taken = seats - seats_.exchange(0, std::memory_order_acq_rel);
    int working = unfinished_.fetch_add(taken, std::memory_order_acq_rel) + taken;
    while (working != 0) {
      wait_for_change(unfinished_, working);
      working = unfinished_.load(std::memory_order_acquire);
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

 private:
  // Returns false when the system refuses another thread: then the existing ones do the work.
  bool start_worker() noexcept {
    try {
      const SignalsBlocked blocked;
      std::thread([this] { serve(); }).detach();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  [[noreturn]] void serve() noexcept {
    for (;;) {
      const std::uint32_t seen = offers_.load(std::memory_order_acquire);
      if (take_seat()) {
        work_->claim_until_none_left();
        // The count is negative until the caller has added the seats taken. Only the last worker after that reads 1.
        if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
      }
      wait_for_change(offers_, seen);
    }
  }

  bool take_seat() noexcept {
    int free = seats_.load(std::memory_order_acquire);
    while (free > 0)
      if (seats_.compare_exchange_weak(free, free - 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  std::atomic<bool> busy_{false};
  int workers_ = 0;               // only the caller that holds busy_ uses it
  detail::Work* work_ = nullptr;  // written before the seats are offered, read only from a seat
  alignas(64) std::atomic<std::uint32_t> offers_{0};
  alignas(64) std::atomic<int> seats_{0};
  alignas(64) std::atomic<int> unfinished_{0};
};

// Never destroyed: its threads sleep until the process ends, which is after static destructors have run.
std::atomic<Pool*> current{nullptr};

// A forked child has none of the threads, and a copy of the pool in an unknown state: it starts with a new pool.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { current.store(nullptr, std::memory_order_relaxed); });

Pool& pool() {
  Pool* there = current.load(std::memory_order_acquire);
  if (there) return *there;
  auto fresh = std::make_unique<Pool>();
  return current.compare_exchange_strong(there, fresh.get(), std::memory_order_acq_rel) ? *fresh.release() : *there;
}

}  // namespace

bool run(detail::Work& work, int threads) { return pool().run(work, threads); }

}  // namespace fusestep::pool
