// Runs a kernel on the CPU: block after block, each thread of a block on a stack of its own. A thread runs until it
// ends or comes to a barrier or a shuffle; then another one, chosen at random, goes on. So a kernel that lacks a
// barrier reads what is not there yet, in this order or in the next. It proves the logic of kernels, not their memory
// order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "cuda_runtime.h"

namespace emulation {

// A block's dynamic shared memory, as large as any device has. Its content is left over from other blocks.
inline constexpr std::size_t kSharedBytes = 228 * 1024;
extern unsigned char shared_memory[kSharedBytes];

// For loops that wait for what another thread does: the others run, then this one goes on.
void let_others_run();
inline constexpr int kMostWaits = 1'000'000;
[[noreturn]] void fail(const char* why);

// A barrier in 64 bits of shared memory (cuda/attention/hardware.h): how many arrivals end a phase, how many are still
// to come, the number of the phase modulo 2.
void make_barrier(std::uint64_t& state, unsigned arrivals);
void arrive(std::uint64_t& state);
unsigned phase(std::uint64_t state);

// Of `count` threads that name the same number.
void named_barrier(unsigned number, unsigned count);

// Aborts, naming the kernel, where some threads wait at a barrier that the others never reach.
void run(const char* name, dim3 grid, dim3 block, const std::function<void()>& kernel);

}  // namespace emulation
