// The benchmarks' floor: as plain a loop as can be over the memory that an operation moves. It is separate from the
// operations' own loops on purpose: what slowed them down would otherwise slow down their measure too.
#include <cstring>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/slice.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Bits, not numbers: an array keeps its values, whatever its dtype, and none of them (NaN, subnormal) is slower.
constexpr std::int64_t kVectorBytes = Vec<float>::kWidth * static_cast<std::int64_t>(sizeof(float));
using Bits [[gnu::vector_size(kVectorBytes)]] = std::uint32_t;

// Arrays lie at any address. A pointer to vectors would not do: GCC writes through it as if they were aligned.
inline Bits load(const unsigned char* from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}
inline void store(unsigned char* to, const Bits& bits) { std::memcpy(to, &bits, sizeof bits); }

// Arrays take turns after so many elements: few enough that the reads of all of them are under way together.
constexpr std::int64_t kTurn = 128;

template <bool kRead, bool kWrite>
void touch(unsigned char* from, std::int64_t bytes, Bits& bits) {
  Bits own = bits;  // in a register: what is written might be `bits`, for all the compiler knows
#pragma GCC unroll 4
  for (std::int64_t i = 0; i + kVectorBytes <= bytes; i += kVectorBytes) {
    if (kRead) __builtin_prefetch(from + i + kPrefetchBytes);
    if (kRead && kWrite) store(from + i, load(from + i) ^ own);  // of zeros, which the compiler does not know
    if (kRead && !kWrite) own ^= load(from + i);
    if (!kRead && kWrite) store(from + i, own);
  }
  bits = own;
}

void stream(const StreamArray* arrays, int num_arrays, std::int64_t begin, std::int64_t end) {
  std::uint32_t zero = 0;
  asm volatile("" : "+r"(zero));
  const Bits zeros = Bits{} + zero;
  Bits sum = zeros;
  for (std::int64_t first = begin; first < end; first += kTurn) {
    const std::int64_t count = std::min(kTurn, end - first);
    for (int k = 0; k < num_arrays; ++k) {
      unsigned char* const from = arrays[k].data + first * arrays[k].element_bytes;
      const std::int64_t bytes = count * arrays[k].element_bytes;
      Bits bits = zeros;
      switch (arrays[k].access) {
        case StreamAccess::update:
          touch<true, true>(from, bytes, bits);
          break;
        case StreamAccess::read:
          touch<true, false>(from, bytes, sum);
          break;
        case StreamAccess::write:
          touch<false, true>(from, bytes, bits);
          break;
      }
    }
  }
  // Keeps the reads of arrays that nothing is written to.
  asm volatile("" : : "m"(sum));
}

}  // namespace

void fill_stream(CpuKernels& kernels) { kernels.stream = stream; }

}  // namespace fusestep::FUSESTEP_ISA
