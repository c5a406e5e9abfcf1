// Memory that is about to be written for the first time, on pages of 2 MiB where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fusestep {

// A hint for a new array of many megabytes, as NumPy gives it for its own: the system maps it page by page when it is
// first written, and with pages of 4 KiB this takes longer than the kernel that fills them. What the system makes of
// it (its setting may be "never") does not change any result, so its answer is not looked at.
inline void prefer_huge_pages([[maybe_unused]] std::uintptr_t address, [[maybe_unused]] std::size_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t huge = std::uintptr_t{1} << 21;  // whole huge pages only: the rest has neighbours
  const std::uintptr_t begin = (address + huge - 1) / huge * huge;
  const std::uintptr_t end = (address + bytes) / huge * huge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fusestep
