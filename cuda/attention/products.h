// The products of tiles on tensor cores. A group is 128 threads, four warps; it computes 64 rows, each warp 16 of them.
// Of these a thread holds rows r and r + 8 (r = lane / 4) and columns 8 j + 2 t and 8 j + 2 t + 1 (t = lane % 4):
// element 4 j + 2 * (row is r + 8) + (column is odd) of its accumulators.
//
// Two machines offer the same functions: Sm90 (wgmma: the instructions are issued here and are done after wait<n>(),
// when all but the n last commits are; operands and results are not to be touched before) and Sm80 (mma.sync, done at
// once).
//
//   scores                d = a b^T            a: 64 rows of a tile, b: kWidth rows
//   multiply_registers    d (+)= a b           a: what `scores` computed, packed to 16 bits
//   multiply_transposed   d (+)= a^T b         a: 64 columns of a tile
//   multiply              d (+)= a b           a: 64 rows of a tile
#pragma once

#include <cstdint>

#include "cuda/attention/hardware.h"
#include "cuda/attention/tile.h"

namespace fusestep::cuda {

inline constexpr int kGroupThreads = 128;
inline constexpr int kGroupRows = 64;

#if !defined(__CUDACC__)
namespace emulation_of {

inline float (&shared_by_warp())[8][16][16] {
  static float memory[8 * 4][8][16][16];
  return memory[threadIdx.x / 32];
}

template <class S>
float element(std::uint32_t address) {
  address ^= (address >> 7 & 7) << 4;
  return to_float(at_shared<S>(address));
}

// Element (outer, depth) of an operand in shared memory.
template <class S, bool kTransposed>
float operand(std::uint64_t descriptor, int outer, int depth) {
  const std::uint32_t address = static_cast<std::uint32_t>(descriptor & 0x3fff) << 4;
  const std::uint32_t leading = static_cast<std::uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const std::uint32_t stride = static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const auto o = static_cast<std::uint32_t>(outer);
  const auto d = static_cast<std::uint32_t>(depth);
  if (kTransposed) return element<S>(address + o / 64 * leading + d / 8 * stride + d % 8 * 128 + o % 64 * 2);
  return element<S>(address + o / 8 * stride + o % 8 * 128 + d * 2);
}

// d (+)= a b of 16 rows and kWidth columns, 16 deep, given the elements.
template <int kWidth, int kFirst, int kCount, class A, class B>
void multiply(float (&d)[kCount], int accumulate, const A& a, const B& b) {
  const int row = static_cast<int>(threadIdx.x % 32 / 4);
  const int column = static_cast<int>(threadIdx.x % 4 * 2);
  for (int i = 0; i < kWidth / 2; ++i) {
    float sum = accumulate != 0 ? d[kFirst + i] : 0;
    for (int k = 0; k < 16; ++k) sum += a(row + i / 2 % 2 * 8, k) * b(i / 4 * 8 + column + i % 2, k);
    d[kFirst + i] = sum;
  }
}

// The 16 x 16 elements that a warp holds as the left operand.
template <class S>
const float (&gathered(const std::uint32_t* a))[16][16] {
  auto& all = shared_by_warp()[0];
  const int row = static_cast<int>(threadIdx.x % 32 / 4);
  const int column = static_cast<int>(threadIdx.x % 4 * 2);
  __syncwarp();  // of the product before
  for (int i = 0; i < 4; ++i) {
    all[row + i % 2 * 8][column + i / 2 * 8] = low_half<S>(a[i]);
    all[row + i % 2 * 8][column + i / 2 * 8 + 1] = high_half<S>(a[i]);
  }
  __syncwarp();
  return all;
}

}  // namespace emulation_of
#endif

class Sm90 {
 public:
  static constexpr std::size_t kSharedBytes = 227 * 1024;  // of a block, at most
  // Threads that say, for a group, that it is done with a tile: one for all, since wgmma ends for all at once.
  static constexpr int kReporters = 1;

  // After the copies into a tile. wgmma reads shared memory past the ordinary path, so the copies have to be made
  // visible to it, which only the thread that made them can do, when they are done.
  __device__ __forceinline__ static void end_copies(Barrier& barrier) {
    wait_for_copies();
    fence_for_wgmma();
    arrive(barrier);
  }

  // Of each thread: producers need few registers, the groups many.
  template <int kRegisters>
  __device__ __forceinline__ static void give_registers() {
#if defined(__CUDACC__)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
  }
  template <int kRegisters>
  __device__ __forceinline__ static void take_registers() {
#if defined(__CUDACC__)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
  }

  // Orders what was written to registers before the instructions that read them.
  __device__ __forceinline__ static void begin() {
#if defined(__CUDACC__)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
  }
  __device__ __forceinline__ static void commit() {
#if defined(__CUDACC__)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
  // d: results that were waited for; the compiler must not move uses of them before the wait.
  template <int kPending, int kCount>
  __device__ __forceinline__ static void wait(float (&d)[kCount]) {
#if defined(__CUDACC__)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
    // A product ends for all threads of a group at once.
    emulation::named_barrier(8 + threadIdx.x / kGroupThreads, kGroupThreads);
#endif
    hold(d);
  }
  // Keeps the compiler from moving accesses to d across this place.
  template <int kCount>
  __device__ __forceinline__ static void hold([[maybe_unused]] float (&d)[kCount]) {
#if defined(__CUDACC__)
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
  }

  template <class S, int kWidth, int kDepth, int kRowsA, int kRowsB>
  __device__ __forceinline__ static void scores(float (&d)[kWidth / 2], const Tile<kRowsA, kDepth>& a, int a_row,
                                                const Tile<kRowsB, kDepth>& b, int b_row) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const auto at = [k](const auto& tile, int row) {
        return descriptor(tile.address + k / 64 * tile.kPanelBytes + row * 128 + k % 64 * 2, 16);
      };
      shared<kWidth, 0, S, false, false>(d, at(a, a_row), at(b, b_row), k > 0);
    }
  }

  template <class S, int kWidth, int kDepth, int kCount, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply_registers(float (&d)[kCount], const std::uint32_t (&a)[kDepth / 4],
                                                            const Tile<kRows, kColumns>& b, bool accumulate = true) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      each_part<kWidth>([&]<int kColumn, int kPart>() {
        registers<kPart, kColumn / 2, S>(d, a + k / 4, rows_from(b, k, kColumn), accumulate || k > 0);
      });
    }
  }

  template <class S, int kWidth, int kDepth, int kCount, int kRowsA, int kColumnsA, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply_transposed(float (&d)[kCount], const Tile<kRowsA, kColumnsA>& a,
                                                             int a_column, const Tile<kRows, kColumns>& b,
                                                             int b_column) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      each_part<kWidth>([&]<int kColumn, int kPart>() {
        shared<kPart, kColumn / 2, S, true, true>(d, rows_from(a, k, a_column), rows_from(b, k, b_column + kColumn), 1);
      });
    }
  }

  template <class S, int kWidth, int kDepth, int kCount, int kRowsA, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply(float (&d)[kCount], const Tile<kRowsA, kDepth>& a,
                                                  const Tile<kRows, kColumns>& b, int b_column) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      each_part<kWidth>([&]<int kColumn, int kPart>() {
        shared<kPart, kColumn / 2, S, false, true>(d, descriptor(a.address + k / 64 * a.kPanelBytes + k % 64 * 2, 16),
                                                   rows_from(b, k, b_column + kColumn), k > 0);
      });
    }
  }

 private:
  // leading: bytes between panels of 64, where the operand's depth is its rows. Eight rows are 1,024 bytes.
  __device__ __forceinline__ static std::uint64_t descriptor(std::uint32_t address, std::uint32_t leading) {
    constexpr std::uint64_t kSwizzle128 = std::uint64_t(1) << 62;
    return std::uint64_t((address & 0x3ffff) >> 4) | std::uint64_t(leading >> 4) << 16 |
           std::uint64_t(1024 >> 4) << 32 | kSwizzle128;
  }

  // Rows `row` and on are the depth, columns `column` and on the other dimension.
  template <int kRows, int kColumns>
  __device__ __forceinline__ static std::uint64_t rows_from(const Tile<kRows, kColumns>& tile, int row, int column) {
    return descriptor(tile.address + column / 64 * tile.kPanelBytes + row * 128 + column % 64 * 2, tile.kPanelBytes);
  }

  // Calls run<column, width> for the parts of a product that one instruction computes.
  template <int kWidth, int kColumn = 0, class Run>
  __device__ __forceinline__ static void each_part(const Run& run) {
    constexpr int kPart = kWidth < 128 ? kWidth : 128;
    run.template operator()<kColumn, kPart>();
    if constexpr (kWidth > kPart) each_part<kWidth - kPart, kColumn + kPart>(run);
  }

  template <int kWidth, int kFirst, class S, bool kTransposedA, bool kTransposedB, int kCount>
  __device__ __forceinline__ static void shared(float (&d)[kCount], std::uint64_t a, std::uint64_t b, int accumulate) {
#if defined(__CUDACC__)
    if constexpr (kWidth == 32) wgmma_shared_32<kFirst, S, kTransposedA, kTransposedB>(d, a, b, accumulate);
    if constexpr (kWidth == 64) wgmma_shared_64<kFirst, S, kTransposedA, kTransposedB>(d, a, b, accumulate);
    if constexpr (kWidth == 128) wgmma_shared_128<kFirst, S, kTransposedA, kTransposedB>(d, a, b, accumulate);
#else
    const int row = static_cast<int>(threadIdx.x / 32 % 4 * 16);
    emulation_of::multiply<kWidth, kFirst>(
        d, accumulate, [&](int i, int k) { return emulation_of::operand<S, kTransposedA>(a, row + i, k); },
        [&](int i, int k) { return emulation_of::operand<S, kTransposedB>(b, i, k); });
#endif
  }

  template <int kWidth, int kFirst, class S, int kCount>
  __device__ __forceinline__ static void registers(float (&d)[kCount], const std::uint32_t* a, std::uint64_t b,
                                                   int accumulate) {
#if defined(__CUDACC__)
    if constexpr (kWidth == 32) wgmma_registers_32<kFirst, S, true>(d, a, b, accumulate);
    if constexpr (kWidth == 64) wgmma_registers_64<kFirst, S, true>(d, a, b, accumulate);
    if constexpr (kWidth == 128) wgmma_registers_128<kFirst, S, true>(d, a, b, accumulate);
#else
    const auto& left = emulation_of::gathered<S>(a);
    emulation_of::multiply<kWidth, kFirst>(
        d, accumulate, [&](int i, int k) { return left[i][k]; },
        [&](int i, int k) { return emulation_of::operand<S, true>(b, i, k); });
#endif
  }
};

class Sm80 {
 public:
  static constexpr std::size_t kSharedBytes = 99 * 1024;
  static constexpr int kReporters = 4;  // one a warp
  static constexpr int kProducers = 32;

  __device__ __forceinline__ static void end_copies(Barrier& barrier) { arrive_after_copies(barrier); }

  template <int kRegisters>
  __device__ __forceinline__ static void give_registers() {}
  template <int kRegisters>
  __device__ __forceinline__ static void take_registers() {}

  __device__ __forceinline__ static void begin() {}
  __device__ __forceinline__ static void commit() {}
  template <int kPending, int kCount>
  __device__ __forceinline__ static void wait(float (&)[kCount]) {}
  template <int kCount>
  __device__ __forceinline__ static void hold(float (&)[kCount]) {}

  template <class S, int kWidth, int kDepth, int kRowsA, int kRowsB>
  __device__ __forceinline__ static void scores(float (&d)[kWidth / 2], const Tile<kRowsA, kDepth>& a, int a_row,
                                                const Tile<kRowsB, kDepth>& b, int b_row) {
#pragma unroll
    for (float& x : d) x = 0;
    const auto lane = static_cast<int>(opaque(threadIdx.x % 32));
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t left[4];
      load<false>(left, a.chunk(a_row + warp() * 16 + lane % 16, k / 8, lane / 16));
#pragma unroll
      for (int n = 0; n < kWidth; n += 16) {
        std::uint32_t right[4];
        load<false>(right, b.chunk(b_row + n + lane % 8 + lane / 16 * 8, k / 8, lane / 8 % 2));
        multiply_two<S>(d, n, left, right);
      }
    }
  }

  template <class S, int kWidth, int kDepth, int kCount, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply_registers(float (&d)[kCount], const std::uint32_t (&a)[kDepth / 4],
                                                            const Tile<kRows, kColumns>& b, bool accumulate = true) {
    clear_unless<kWidth>(d, accumulate);
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      const std::uint32_t left[4] = {a[k / 4], a[k / 4 + 1], a[k / 4 + 2], a[k / 4 + 3]};
      multiply_rows<S, kWidth>(d, left, b, k, 0);
    }
  }

  template <class S, int kWidth, int kDepth, int kCount, int kRowsA, int kColumnsA, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply_transposed(float (&d)[kCount], const Tile<kRowsA, kColumnsA>& a,
                                                             int a_column, const Tile<kRows, kColumns>& b,
                                                             int b_column) {
    const auto lane = static_cast<int>(opaque(threadIdx.x % 32));
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t left[4];
      load<true>(left, a.chunk(k + lane % 8 + lane / 16 * 8, (a_column + warp() * 16) / 8 + lane / 8 % 2));
      multiply_rows<S, kWidth>(d, left, b, k, b_column);
    }
  }

  template <class S, int kWidth, int kDepth, int kCount, int kRowsA, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply(float (&d)[kCount], const Tile<kRowsA, kDepth>& a,
                                                  const Tile<kRows, kColumns>& b, int b_column) {
    clear_unless<kWidth>(d, false);
    const auto lane = static_cast<int>(opaque(threadIdx.x % 32));
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t left[4];
      load<false>(left, a.chunk(warp() * 16 + lane % 16, k / 8, lane / 16));
      multiply_rows<S, kWidth>(d, left, b, k, b_column);
    }
  }

 private:
  // Of the group.
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x - kProducers) / 32 % 4; }

  template <int kWidth, int kCount>
  __device__ __forceinline__ static void clear_unless(float (&d)[kCount], bool accumulate) {
    if (accumulate) return;
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) d[i] = 0;
  }

  // d += left b, where b is rows k to k + 15 of a tile and kWidth of its columns.
  template <class S, int kWidth, int kCount, int kRows, int kColumns>
  __device__ __forceinline__ static void multiply_rows(float (&d)[kCount], const std::uint32_t (&left)[4],
                                                       const Tile<kRows, kColumns>& b, int k, int column) {
    const auto lane = static_cast<int>(opaque(threadIdx.x % 32));
#pragma unroll
    for (int n = 0; n < kWidth; n += 16) {
      std::uint32_t right[4];
      load<true>(right, b.chunk(k + lane % 8 + lane / 8 % 2 * 8, (column + n) / 8, lane / 16));
      multiply_two<S>(d, n, left, right);
    }
  }

  // Columns n to n + 15.
  template <class S, int kCount>
  __device__ __forceinline__ static void multiply_two(float (&d)[kCount], int n, const std::uint32_t (&left)[4],
                                                      const std::uint32_t (&right)[4]) {
    multiply_eight<S>(&d[n / 2], left, right[0], right[1]);
    multiply_eight<S>(&d[n / 2 + 4], left, right[2], right[3]);
  }

  // Four 8 x 8 matrices: lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i. A thread gets elements 2 t
  // and 2 t + 1 of row r of each; kTransposed: of column r.
  template <bool kTransposed>
  __device__ __forceinline__ static void load(std::uint32_t (&matrices)[4], std::uint32_t address) {
#if defined(__CUDACC__)
    if constexpr (kTransposed) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                   : "r"(address)
                   : "memory");
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                   : "r"(address)
                   : "memory");
    }
#else
    auto* addresses = reinterpret_cast<std::uint32_t*>(&emulation_of::shared_by_warp()[1]);
    const unsigned lane = threadIdx.x % 32;
    const auto at = [&](unsigned row, unsigned column) -> std::uint32_t {
      return at_shared<std::uint16_t>(addresses[row] + 2 * column);
    };
    __syncwarp();
    addresses[lane] = address;
    __syncwarp();
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned r = lane / 4;
      const unsigned t = 2 * (lane % 4);
      matrices[i] =
          kTransposed ? at(8 * i + t, r) | at(8 * i + t + 1, r) << 16 : at(8 * i + r, t) | at(8 * i + r, t + 1) << 16;
    }
#endif
  }

  template <class S>
  __device__ __forceinline__ static void multiply_eight(float* d, const std::uint32_t (&a)[4], std::uint32_t b0,
                                                        std::uint32_t b1) {
#if defined(__CUDACC__)
    if constexpr (std::is_same_v<S, Float16>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
          "%2, "
          "%3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
          "%2, "
          "%3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#else
    const auto& left = emulation_of::gathered<S>(a);
    auto& right = emulation_of::shared_by_warp()[2];
    const unsigned row = threadIdx.x % 4 * 2;
    const unsigned column = threadIdx.x % 32 / 4;
    right[column][row] = low_half<S>(b0);
    right[column][row + 1] = high_half<S>(b0);
    right[column][row + 8] = low_half<S>(b1);
    right[column][row + 9] = high_half<S>(b1);
    __syncwarp();
    float sums[4] = {d[0], d[1], d[2], d[3]};
    emulation_of::multiply<8, 0>(
        sums, 1, [&](int i, int k) { return left[i][k]; }, [&](int i, int k) { return right[i][k]; });
    for (int i = 0; i < 4; ++i) d[i] = sums[i];
#endif
  }
};

}  // namespace fusestep::cuda
