// Runs the parts of one kernel call on several threads.
//
// Results never depend on the threads: every index has an output of its own, or its own element of a partial result
// that is combined in index order afterwards. So any thread may take any index.
//
// Where torch has loaded an OpenMP runtime, its threads do the work: they spin for a moment after each operation of
// torch, and threads of our own would compete with them for the cores. A parallel region of OpenMP ends when all its
// threads have arrived. On CPUs that are shared with other programs it may wait for a thread that the system is not
// running (4 to 12 ms were seen), as torch's own operations do.
#pragma once

#include <cstdint>
#include <string>

namespace fusestep {

// The largest count that set_num_threads accepts. An OpenMP runtime ends the process when it cannot start its threads,
// so a count that can only be a mistake must not reach it.
inline constexpr int max_threads = 1024;

// How many threads the next parallel_for of the calling thread may use, the caller included:
// set_num_threads, else what the OpenMP runtime in the process would use (torch.set_num_threads sets it; it belongs to
// the calling thread), else OMP_NUM_THREADS as it was at import, else the number of CPUs this thread may run on.
int num_threads();

// 1 to max_threads: use that many from now on, in every thread. 0: automatic again.
void set_num_threads(int n);

// A description for users: "OpenMP runtime already loaded (libgomp)", "own pool".
std::string thread_source();

namespace detail {
using Task = void (*)(const void* body, std::int64_t index) noexcept;
void run(std::int64_t count, Task task, const void* body);
}  // namespace detail

// Runs body(i) once for every i in [0, count) and returns when all have run, with their writes visible to the caller.
// Indices are claimed in increasing order by up to num_threads() threads; the caller is one of them. body must not
// throw.
//
// May be called from several threads at once, and from inside a body or an OpenMP parallel region (then it runs in the
// calling thread alone). Allocates nothing once the threads exist.
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
