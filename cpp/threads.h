// Running the pieces of one kernel call on several threads.
//
// The results never depend on the threads: callers give every index its own output (or its own slot of a partial
// result that is combined in index order afterwards), so who claims which index is free.
#pragma once

#include <cstdint>
#include <string>

namespace fusestep {

// The largest count set_num_threads accepts; more is a mistake, and an OpenMP runtime exits when it cannot start them.
inline constexpr int max_threads = 1024;

// How many threads the next parallel_for of the calling thread may use, the caller included:
// set_num_threads, else what the OpenMP runtime in the process would use (torch.set_num_threads sets it; it belongs to
// the calling thread), else OMP_NUM_THREADS as it was at import, else the number of CPUs this thread may run on.
int num_threads();

// 1 to max_threads: use that many from now on, in every thread. 0: automatic again.
void set_num_threads(int n);

// In words, for people: "OpenMP runtime already loaded (libgomp)", "own pool".
std::string thread_source();

// How long the work takes on one thread: up to a millisecond or two, or longer.
//
// A region of a borrowed OpenMP runtime ends when every thread of the team has come, also one that the system is not
// running. Where CPUs are shared (containers, virtual machines, a busy desktop) that was seen to take 4 to 12 ms. The
// own pool waits only for threads that have begun to work; what it loses instead is that torch's threads spin for a
// moment after each operation of theirs, and a brief piece of work may run beside them as if alone. So brief work goes
// to the own pool and loses microseconds at worst, lasting work to the runtime that torch has already woken.
enum class Length { brief, lasting };

namespace detail {
using Task = void (*)(const void* body, std::int64_t index) noexcept;
void run(std::int64_t count, Task task, const void* body, Length length);
}  // namespace detail

// Runs body(i) once for every i in [0, count) and returns when all have run, with their writes visible to the caller.
// Indices are claimed in increasing order by up to num_threads() threads, the caller being one. Bodies must not throw.
//
// May be called from several threads at once, and from inside a body or an OpenMP parallel region (then it runs in the
// calling thread alone). Allocates nothing once the threads are there.
template <class Body>
void parallel_for(std::int64_t count, const Body& body, Length length = Length::lasting) {
  if (count == 1) {
    body(0);
  } else if (count > 1) {
    detail::run(
        count, [](const void* erased, std::int64_t i) noexcept { (*static_cast<const Body*>(erased))(i); }, &body,
        length);
  }
}

}  // namespace fusestep
