#include "cpu/bf16_products.h"

#if defined(__x86_64__)

#include <cpuid.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fusestep {

namespace {

struct CpuId {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;

  // Zeros where the CPU has no such leaf.
  CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }

// The registers that the operating system saves when it switches threads (XCR0).
std::uint64_t saved_registers() {
  if (!bit(CpuId(1, 0).ecx, 27)) return 0;  // OSXSAVE: there is no such register to read
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

// Linux gives the 8 KB of tile registers to a process that asked for them, with all its threads, those to come too.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_avx512_bf16() { return bit(CpuId(7, 1).eax, 5); }

bool has_amx_bf16() {
  static const bool has = [] {
    constexpr std::uint64_t kTiles = std::uint64_t{3} << 17;  // their configuration, and their data
    const CpuId features(7, 0);
    return bit(features.edx, 24) && bit(features.edx, 22) && (saved_registers() & kTiles) == kTiles && may_use_tiles();
  }();
  return has;
}

}  // namespace fusestep

#endif
