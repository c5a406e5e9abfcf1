// parallel_for on the own pool, then the same on an OpenMP runtime loaded at run time where the machine has one.
// Exit status 0 when everything held; every failure is printed with its line.
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "threads/threads.h"

using fusestep::parallel_for;
using fusestep::set_num_threads;

#if defined(__SANITIZE_THREAD__)
constexpr bool under_tsan = true;  // it supports neither threads after a fork nor an uninstrumented libgomp
#else
constexpr bool under_tsan = false;
#endif

namespace {

std::atomic<int> failures{0};
std::atomic<long> allocations{0};

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// Returns when `count` bodies are here at the same time; false after ten seconds.
class Meeting {
 public:
  explicit Meeting(int count) : missing_(count) {}
  bool arrive_and_wait() {
    --missing_;
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (missing_ > 0) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::yield();
    }
    return true;
  }

 private:
  std::atomic<int> missing_;
};

// Plain writes in the bodies, plain reads after: a missing happens-before shows up under TSan.
bool each_index_once(std::int64_t count) {
  std::vector<int> runs(static_cast<std::size_t>(count));
  parallel_for(count, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
  for (int n : runs)
    if (n != 1) return false;
  return true;
}

void test_each_index_once() {
  for (int threads : {1, 2, 3, 8, 2, 5, 1, 4}) {
    set_num_threads(threads);
    for (std::int64_t count : {0, 1, 2, 3, 7, 64, 1000, 50000}) CHECK(each_index_once(count));
  }
}

void test_indices_are_claimed_in_increasing_order() {
  set_num_threads(4);
  std::atomic<bool> increasing{true};
  for (int call = 0; call < 200; ++call) {
    // Within a thread every index is larger than the one before; a new call starts again from a smaller one.
    static thread_local std::int64_t last = -1;
    static thread_local int last_call = -1;
    parallel_for(64, [&](std::int64_t i) {
      if (last_call == call && i <= last) {
        increasing = false;
        std::fprintf(stderr, "call %d: %lld after %lld\n", call, static_cast<long long>(i),
                     static_cast<long long>(last));
      }
      last = i;
      last_call = call;
    });
  }
  CHECK(increasing);
}

void test_several_threads_really_run() {
  for (int threads : {2, 4}) {
    set_num_threads(threads);
    Meeting meeting(threads);
    std::atomic<int> met{0};
    parallel_for(threads, [&](std::int64_t) { met += meeting.arrive_and_wait(); });
    CHECK(met == threads);
  }
}

void test_no_more_threads_than_asked_for() {
  set_num_threads(4);
  each_index_once(100);  // four are there now
  set_num_threads(2);
  for (int call = 0; call < 200; ++call) {
    std::atomic<int> now{0}, most{0};
    parallel_for(64, [&](std::int64_t) {
      const int here = ++now;
      int before = most;
      while (here > before && !most.compare_exchange_weak(before, here)) {
      }
      std::this_thread::yield();
      --now;
    });
    CHECK(most <= 2);
  }
}

void test_many_small_calls() {
  set_num_threads(3);
  std::int64_t sum = 0;
  std::array<std::int64_t, 3> out{};
  for (int call = 0; call < 20000; ++call) {
    parallel_for(3, [&](std::int64_t i) { out[static_cast<std::size_t>(i)] = i + call; });
    sum += out[0] + out[1] + out[2];
  }
  CHECK(sum == 3 * (19999LL * 20000 / 2) + 3 * 20000);
}

// Workers asleep, workers still spinning, workers on their way to bed.
void test_calls_after_pauses() {
  set_num_threads(2);
  for (int call = 0; call < 300; ++call) {
    CHECK(each_index_once(40));
    std::this_thread::sleep_for(std::chrono::microseconds(call));
  }
}

void test_concurrent_callers() {
  set_num_threads(3);
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([c] {
      for (int call = 0; call < 500; ++call) CHECK(each_index_once(20 + c));
    });
  for (auto& caller : callers) caller.join();
}

void test_thread_count_changes_under_way() {
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (int n = 1; !stop; n = n % 5 + 1) set_num_threads(n);
  });
  for (int call = 0; call < 3000; ++call) CHECK(each_index_once(16));
  stop = true;
  changer.join();
}

void test_nested_calls_stay_in_their_thread() {
  set_num_threads(3);
  std::array<std::array<int, 50>, 20> runs{};
  parallel_for(20, [&](std::int64_t i) {
    const auto self = std::this_thread::get_id();
    parallel_for(50, [&](std::int64_t j) {
      CHECK(std::this_thread::get_id() == self);
      ++runs[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)];
    });
  });
  for (const auto& row : runs)
    for (int n : row) CHECK(n == 1);
}

void test_one_thread_is_the_caller() {
  set_num_threads(1);
  const auto self = std::this_thread::get_id();
  std::int64_t expected = 0;
  parallel_for(100, [&](std::int64_t i) {
    CHECK(std::this_thread::get_id() == self);
    CHECK(i == expected++);
  });
}

void test_no_allocation() {
  set_num_threads(3);
  std::array<std::atomic<int>, 8> runs{};
  const auto call = [&] { parallel_for(8, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; }); };
  call();
  const long before = allocations;
  for (int k = 0; k < 1000; ++k) call();
  CHECK(allocations == before);
}

void test_set_num_threads() {
  set_num_threads(3);
  CHECK(fusestep::num_threads() == 3);
  std::thread([] { CHECK(fusestep::num_threads() == 3); }).join();
  set_num_threads(0);
  CHECK(fusestep::num_threads() >= 1);
  set_num_threads(1 << 30);
  CHECK(fusestep::num_threads() == fusestep::max_threads);
  set_num_threads(0);
}

// Runs `body` in a forked child; true when it returned true within 20 seconds.
template <class Body>
bool holds_in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(body() ? 0 : 1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool two_threads_meet() {
  set_num_threads(2);
  Meeting meeting(2);
  std::atomic<int> met{0};
  parallel_for(2, [&](std::int64_t) { met += meeting.arrive_and_wait(); });
  return met == 2;
}

void test_fork() {
  set_num_threads(3);
  each_index_once(100);
  CHECK(holds_in_child([] { return each_index_once(1000) && two_threads_meet(); }));
  // The child of a child, and the parent afterwards.
  CHECK(holds_in_child([] { return each_index_once(9) && holds_in_child([] { return two_threads_meet(); }); }));
  CHECK(two_threads_meet());
}

void test_fork_while_another_thread_is_at_work() {
  set_num_threads(3);
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    while (!stop) CHECK(each_index_once(64));
  });
  for (int k = 0; k < 30; ++k) CHECK(holds_in_child([] { return each_index_once(100) && two_threads_meet(); }));
  stop = true;
  worker.join();
}

void test_workers_leave_signals_to_the_program() {
  set_num_threads(2);
  const auto self = std::this_thread::get_id();
  Meeting meeting(2);
  std::atomic<bool> blocked{false};
  parallel_for(2, [&](std::int64_t) {
    meeting.arrive_and_wait();
    if (std::this_thread::get_id() == self) return;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    blocked = sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGTERM) == 1;
  });
  CHECK(blocked);
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  CHECK(sigismember(&mask, SIGINT) == 0);
}

// In a child, as the limit stays: no address space for a thread's stack.
void test_system_without_threads_to_give() {
  CHECK(holds_in_child([] {
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    if (!(statm >> pages)) return true;  // no such file here: nothing to test with
    const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (1 << 20);
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_AS, &limit);
    set_num_threads(8);
    return each_index_once(1000);
  }));
}

std::string count_printed_with(const std::string& environment, const std::string& self) {
  FILE* pipe = popen(("env -u OMP_NUM_THREADS " + environment + " '" + self + "' --count").c_str(), "r");
  std::array<char, 32> line{};
  const bool read = pipe && std::fgets(line.data(), static_cast<int>(line.size()), pipe);
  if (pipe) pclose(pipe);
  return read ? std::string(line.data()) : std::string();
}

void test_automatic_count(const std::string& self) {
  const std::string automatic = count_printed_with("", self);
  CHECK(!automatic.empty());
  CHECK(count_printed_with("OMP_NUM_THREADS=5", self) == "5");
  CHECK(count_printed_with("OMP_NUM_THREADS=4,2", self) == "4");
  CHECK(count_printed_with("'OMP_NUM_THREADS= 3 '", self) == "3");
  CHECK(count_printed_with("OMP_NUM_THREADS=1000000", self) == std::to_string(fusestep::max_threads));
  for (const char* nonsense : {"''", "0", "-2", "many", "3x", "99999999999999999999"})
    CHECK(count_printed_with(std::string("OMP_NUM_THREADS=") + nonsense, self) == automatic);
#if defined(__linux__)
  cpu_set_t before;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  CHECK(std::getenv("OMP_NUM_THREADS") || fusestep::num_threads() == CPU_COUNT(&before));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (std::size_t cpu = 0; CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  CHECK(std::getenv("OMP_NUM_THREADS") || fusestep::num_threads() == 1);
  CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
#endif
}

void test_everything_about_calls() {
  test_each_index_once();
  test_indices_are_claimed_in_increasing_order();
  test_several_threads_really_run();
  test_no_more_threads_than_asked_for();
  test_many_small_calls();
  test_calls_after_pauses();
  test_concurrent_callers();
  test_thread_count_changes_under_way();
  test_nested_calls_stay_in_their_thread();
  test_one_thread_is_the_caller();
  test_no_allocation();
  test_set_num_threads();
  if (!under_tsan) {
    test_fork();
    test_fork_while_another_thread_is_at_work();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--count") {
    std::printf("%d", fusestep::num_threads());
    return 0;
  }
  CHECK(fusestep::thread_source() == "own pool");
  test_automatic_count(argv[0]);
  if (!under_tsan) test_system_without_threads_to_give();
  test_everything_about_calls();
  test_workers_leave_signals_to_the_program();

  // Loaded privately, so only a search through the loaded libraries finds it.
  void* openmp = under_tsan ? nullptr : dlopen(argc > 1 ? argv[1] : "libgomp.so.1", RTLD_NOW | RTLD_LOCAL);
  if (openmp) {
    const std::string source = fusestep::thread_source();
    CHECK(source.starts_with("OpenMP runtime already loaded (lib"));
    set_num_threads(0);
    reinterpret_cast<void (*)(int)>(dlsym(openmp, "omp_set_num_threads"))(3);
    CHECK(fusestep::num_threads() == 3);
    test_everything_about_calls();

    // Inside somebody else's parallel region a call stays in its thread.
    set_num_threads(3);
    const auto region =
        reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(dlsym(openmp, "GOMP_parallel"));
    region(
        [](void*) {
          const auto self = std::this_thread::get_id();
          parallel_for(20, [&](std::int64_t) { CHECK(std::this_thread::get_id() == self); });
        },
        nullptr, 2, 0);
    CHECK(fusestep::thread_source() == source);
    // libgomp hangs in the child of a process that used it; libomp and libiomp5 do not.
    CHECK(holds_in_child([&] {
      return fusestep::thread_source() ==
             (source.ends_with("(libgomp)") ? "own pool (libgomp does not survive a fork)" : source);
    }));
  }
  std::printf("threads: %s, with %s\n", failures ? "FAILED" : "ok",
              openmp ? fusestep::thread_source().c_str() : "the own pool only");
  return failures ? 1 : 0;
}
