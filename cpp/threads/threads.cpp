#include "threads/threads.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "threads/openmp.h"
#include "threads/pool.h"
#include "threads/work.h"

namespace fusestep {
namespace {

std::atomic<int> chosen_threads{0};

// "4", or "4,2" for nested levels, of which the first counts. 0 when it is not set or not a positive number.
int threads_of_environment() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (!text) return 0;
  while (*text == ' ') ++text;
  int n = 0;
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), n);
  const bool ends_well = *end == '\0' || *end == ',' || *end == ' ';
  return error == std::errc() && ends_well && n > 0 ? std::min(n, max_threads) : 0;
}

// Read once, at import, as OpenMP runtimes do: a later read would race with a thread that changes the environment.
const int environment_threads = threads_of_environment();

int threads_of_affinity() {
#if defined(__linux__)
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return std::clamp(CPU_COUNT(&cpus), 1, max_threads);
#endif
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, max_threads);
}

int automatic_threads(const openmp::Runtime* runtime) {
  if (runtime) return std::clamp(runtime->max_threads(), 1, max_threads);
  return environment_threads ? environment_threads : threads_of_affinity();
}

struct Team {
  detail::Work& work;
  std::atomic<int> seats;
};

void run_on_openmp(const openmp::Runtime& runtime, detail::Work& work, int threads) {
  Team team{work, threads};
  // Always the whole team, as torch does, even if fewer threads have work: libgomp ends and starts threads whenever the
  // size of the team changes. Threads without a seat return at once.
  const unsigned size = threads > runtime.max_threads() ? static_cast<unsigned>(threads) : 0;
  runtime.parallel(
      [](void* shared) {
        auto& our = *static_cast<Team*>(shared);
        if (our.seats.fetch_sub(1, std::memory_order_relaxed) > 0) our.work.claim_until_none_left();
      },
      &team, size, 0);
}

}  // namespace

int num_threads() {
  const int chosen = chosen_threads.load(std::memory_order_relaxed);
  return chosen ? chosen : automatic_threads(openmp::find());
}

void set_num_threads(int n) { chosen_threads.store(std::clamp(n, 0, max_threads), std::memory_order_relaxed); }

std::string thread_source() {
  const openmp::Runtime* runtime = openmp::find();
  if (!runtime) return "own pool";
  if (!openmp::works_here(*runtime)) return "own pool (" + runtime->name + " does not survive a fork)";
  return "OpenMP runtime already loaded (" + runtime->name + ")";
}

void detail::run(std::int64_t count, Task task, const void* body) {
  Work work(count, task, body);
  const openmp::Runtime* runtime = openmp::find();
  const int chosen = chosen_threads.load(std::memory_order_relaxed);
  const int threads = chosen ? chosen : automatic_threads(runtime);
  const bool alone = threads == 1 || inside_parallel_for || (runtime && runtime->in_parallel());
  if (!alone && runtime && openmp::works_here(*runtime)) return run_on_openmp(*runtime, work, threads);
  // Where another thread uses the pool, and so the cores, working in this thread is faster than waiting.
  if (alone || !pool::run(work, threads)) work.claim_until_none_left();
}

}  // namespace fusestep
