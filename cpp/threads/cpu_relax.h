// For loops that wait for another thread: lets the CPU's other hardware thread, or its power supply, have the time.
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
