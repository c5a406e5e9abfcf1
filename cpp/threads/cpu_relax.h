// For loops that wait for another thread: tells the CPU that this thread is waiting, so that it saves power and gives
// its execution units to the other hardware thread of the core.
#pragma once

namespace fusestep {

inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace fusestep
