#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <random>
#include <vector>

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

alignas(1024) unsigned char shared_memory[kSharedBytes];

namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 128 * 1024;

enum class Place { running, block_barrier, warp_barrier, done };

// What a switch between stacks needs. swapcontext would ask the operating system for the signal mask each time, which
// took most of the time of the masked softmax's tests.
struct Jump {
  void* buffer[5];
};

struct Thread {
  Jump jump;
  bool started;  // its stack is in use: it runs kernel after kernel in one loop
  void* stack;
  Place place;
  std::uint64_t given;  // to a shuffle
};

std::mutex one_kernel;
std::vector<Thread> threads;  // of the block, and those that larger blocks needed before
unsigned current;
Jump scheduler;
const std::function<void()>* body;
std::mt19937 randomness(20240229);

// GCC wants it in a function of its own.
[[gnu::noinline, noreturn]] void jump_to(Jump& jump) { __builtin_longjmp(jump.buffer, 1); }

[[gnu::noinline]] void wait_at(Place place) {
  Thread& self = threads[current];
  self.place = place;
  if (__builtin_setjmp(self.jump.buffer) == 0) jump_to(scheduler);
}

struct NamedBarrier {
  unsigned arrived;
  unsigned passed;  // how often it has opened
};
NamedBarrier named_barriers[16];
const char* kernel_name;

void run_thread() {
  for (;;) {
    (*body)();
    wait_at(Place::done);
  }
}

[[gnu::noinline]] void start(Thread& thread) {
  thread.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, run_thread, 0);
  setcontext(&context);
}

[[gnu::noinline]] void let_run(unsigned t) {
  current = t;
  threadIdx.x = t;
  if (__builtin_setjmp(scheduler.buffer) != 0) return;  // it waits, or is done
  if (threads[t].started) jump_to(threads[t].jump);
  start(threads[t]);
}

// Lets threads [begin, end) go on if all that are not done have come to `place`.
bool open(unsigned begin, unsigned end, Place place) {
  bool waiting = false;
  for (unsigned t = begin; t < end; ++t) {
    if (threads[t].place != place && threads[t].place != Place::done) return false;
    waiting = waiting || threads[t].place == place;
  }
  for (unsigned t = begin; t < end; ++t) {
    if (threads[t].place == place) threads[t].place = Place::running;
  }
  return waiting;
}

void run_block() {
  const unsigned count = blockDim.x;
  std::vector<unsigned> order(count);
  for (unsigned t = 0; t < count; ++t) {
    threads[t].place = Place::running;
    order[t] = t;
  }
  for (;;) {
    std::shuffle(order.begin(), order.end(), randomness);
    bool progress = false;
    for (const unsigned t : order) {
      if (threads[t].place != Place::running) continue;
      progress = true;
      let_run(t);
    }
    for (unsigned warp = 0; warp < count; warp += kWarp) {
      progress = open(warp, std::min(warp + kWarp, count), Place::warp_barrier) || progress;
    }
    progress = open(0, count, Place::block_barrier) || progress;
    if (std::all_of(order.begin(), order.end(), [](unsigned t) { return threads[t].place == Place::done; })) return;
    if (!progress) fail("some threads wait where the others never come");
  }
}

}  // namespace

void let_others_run() { wait_at(Place::running); }

void fail(const char* why) {
  std::fprintf(stderr, "emulation: %s: %s\n", kernel_name, why);
  std::abort();
}

void make_barrier(std::uint64_t& state, unsigned arrivals) {
  state = static_cast<std::uint64_t>(arrivals) << 32 | arrivals << 1;
}

void arrive(std::uint64_t& state) {
  state -= 2;
  if ((state & 0xfffffffe) != 0) return;
  state = state >> 32 << 32 | (state >> 32 << 1) | ((state & 1) ^ 1);
}

unsigned phase(std::uint64_t state) { return static_cast<unsigned>(state & 1); }

void named_barrier(unsigned number, unsigned count) {
  NamedBarrier& barrier = named_barriers[number];
  const unsigned passed = barrier.passed;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.passed;
    return;
  }
  for (int i = 0; barrier.passed == passed; ++i) {
    if (i == kMostWaits) fail("threads wait at a named barrier where the others never come");
    let_others_run();
  }
}

std::uint64_t exchange(std::uint64_t value, unsigned from) {
  threads[current].given = value;
  wait_at(Place::warp_barrier);
  const unsigned t = current / kWarp * kWarp + from;
  const std::uint64_t result = from < kWarp && t < blockDim.x ? threads[t].given : value;
  wait_at(Place::warp_barrier);  // before the next one is given
  return result;
}

void run(const char* name, dim3 grid, dim3 block, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_kernel);
  while (threads.size() < block.x) {
    Thread thread{};
    thread.stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    threads.push_back(thread);
  }
  body = &kernel;
  kernel_name = name;
  gridDim.x = grid.x;
  blockDim.x = block.x;
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx.x = b;
    run_block();
  }
}

}  // namespace emulation

void __syncthreads() { emulation::wait_at(emulation::Place::block_barrier); }
void __syncwarp(unsigned /*mask*/) { emulation::wait_at(emulation::Place::warp_barrier); }

// --- memory and captures ---

namespace {

long long live_allocations = 0;
long long uploads = 0;
bool capturing = false;
std::vector<cudaUserObject_t> owned_by_graph;

}  // namespace

cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  const cudaError_t error = cudaMallocHost(memory, bytes);
  if (error != cudaSuccess) return error;
  std::memset(*memory, 0xff, bytes);  // new memory holds no zeros on a device either
  ++live_allocations;
  return error;
}

cudaError_t cudaFree(void* memory) {
  if (memory != nullptr) --live_allocations;
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  if (kind == cudaMemcpyHostToDevice) ++uploads;
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph) {
  *id = 1;
  *graph = nullptr;
  return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* memory, void (*destroy)(void*), unsigned, unsigned) {
  *object = new CUuserObject_st{memory, destroy};
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t object, unsigned, unsigned) {
  owned_by_graph.push_back(object);
  return cudaSuccess;
}

// For the tests, by ctypes (tests/support/emulated_cuda.py).
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED long long emulation_live_allocations() { return live_allocations; }
EXPORTED long long emulation_uploads() { return uploads; }
EXPORTED void emulation_begin_capture() { capturing = true; }
EXPORTED void emulation_end_capture_and_destroy_graph() {
  capturing = false;
  for (const cudaUserObject_t object : owned_by_graph) {
    object->destroy(object->memory);
    delete object;
  }
  owned_by_graph.clear();
}
