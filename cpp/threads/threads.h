// Running the pieces of one kernel call on several threads.
//
// The results never depend on the threads: callers give every index its own output (or its own slot of a partial
// result that is combined in index order afterwards), so who claims which index is free.
//
// Where torch has loaded an OpenMP runtime, its threads do the work, long or short: they spin for a moment after each
// operation of torch's, and threads of our own would have to share the cores with them. A region of OpenMP ends when
// its whole team has come, so where CPUs are shared with other programs it waits for threads that the system is not
// running (4 to 12 ms were seen), just as torch's own operations do.
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

namespace detail {
using Task = void (*)(const void* body, std::int64_t index) noexcept;
void run(std::int64_t count, Task task, const void* body);
}  // namespace detail

// Runs body(i) once for every i in [0, count) and returns when all have run, with their writes visible to the caller.
// Indices are claimed in increasing order by up to num_threads() threads, the caller being one. Bodies must not throw.
//
// May be called from several threads at once, and from inside a body or an OpenMP parallel region (then it runs in the
// calling thread alone). Allocates nothing once the threads are there.
template <class Body>
void parallel_for(std::int64_t count, const Body& body) {
  if (count == 1) {
    body(0);
  } else if (count > 1) {
    detail::run(
        count, [](const void* erased, std::int64_t i) noexcept { (*static_cast<const Body*>(erased))(i); }, &body);
  }
}

}  // namespace fusestep
