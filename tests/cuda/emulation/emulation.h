// Runs a kernel on the CPU: block after block, each thread of a block on a stack of its own. A thread runs until it
// ends or comes to a barrier or a shuffle; then another one, chosen at random, goes on. So a kernel that lacks a
// barrier reads what is not there yet, in this order or in the next. It proves the logic of kernels, not their memory
// order.
#pragma once

#include <functional>

#include "cuda_runtime.h"

namespace emulation {

// A block's dynamic shared memory, as large as any device has. Its content is left over from other blocks.
inline constexpr std::size_t kSharedBytes = 228 * 1024;
extern unsigned char shared_memory[kSharedBytes];

// Aborts, naming the kernel, where some threads wait at a barrier that the others never reach.
void run(const char* name, dim3 grid, dim3 block, const std::function<void()>& kernel);

}  // namespace emulation
