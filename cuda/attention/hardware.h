// What attention asks of the machine itself, each thing by one small function: copies into shared memory, barriers, the
// tensor cores' instructions. On a device they are instructions; under emulation plain code that does what they are
// documented to do, so that everything above them runs in the tests without a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "math/lowp.h"
#if defined(__CUDACC__)
#include "cuda/attention/wgmma.h"
#endif

namespace fusestep::cuda {

// A place in shared memory as instructions take it.
#if defined(__CUDACC__)
__device__ __forceinline__ std::uint32_t shared_address(const void* place) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(place));
}
#else
inline std::uint32_t shared_address(const void* place) {
  return static_cast<std::uint32_t>(static_cast<const unsigned char*>(place) - emulation::shared_memory);
}
template <class T>
T& at_shared(std::uint32_t address) {
  return *reinterpret_cast<T*>(emulation::shared_memory + address);
}
#endif

// The same value, of which the compiler knows nothing: what follows from it is worked out where it is used. Without
// that all addresses of a loop are worked out before the loop, and there are more of them than registers.
__device__ __forceinline__ std::uint32_t opaque(std::uint32_t value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// --- copies ---

// Begins to copy the first `bytes` of 16 from global memory, and zeros for the rest. Both addresses are multiples
// of 16.
__device__ __forceinline__ void copy_16_bytes(std::uint32_t to, const void* from, int bytes) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
#else
  std::memset(&at_shared<char>(to), 0, 16);
  std::memcpy(&at_shared<char>(to), from, static_cast<std::size_t>(bytes));
#endif
}

__device__ __forceinline__ void store_shared(std::uint32_t to, std::uint32_t value) {
#if defined(__CUDACC__)
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
#else
  at_shared<std::uint32_t>(to) = value;
#endif
}

__device__ __forceinline__ void store_shared_16_bytes(std::uint32_t to, const std::uint32_t (&value)[4]) {
#if defined(__CUDACC__)
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value[0]), "r"(value[1]), "r"(value[2]),
               "r"(value[3])
               : "memory");
#else
  std::memcpy(&at_shared<char>(to), value, 16);
#endif
}

__device__ __forceinline__ uint4 load_shared_16_bytes(std::uint32_t from) {
#if defined(__CUDACC__)
  uint4 value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
#else
  return at_shared<uint4>(from);
#endif
}

// What this thread has written to shared memory becomes visible to wgmma, which reads it past the ordinary path.
__device__ __forceinline__ void fence_for_wgmma() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// --- barriers ---

// Waits go on for some seconds at most: a deadlock becomes an error instead of a device that hangs.
inline constexpr int kMostWaits = 2'000'000;

__device__ __forceinline__ void fail_waiting() {
#if defined(__CUDACC__)
  __trap();
#else
  emulation::fail("a wait without end");
#endif
}

// In shared memory. Each time that as many threads as it was made for have arrived, its phase ends; phases are counted
// 0, 1, 0, 1.
struct Barrier {
  std::uint64_t state;
};

__device__ __forceinline__ void make_barrier(Barrier& barrier, int arrivals) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#else
  emulation::make_barrier(barrier.state, static_cast<unsigned>(arrivals));
#endif
}

__device__ __forceinline__ void arrive(Barrier& barrier) {
#if defined(__CUDACC__)
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(shared_address(&barrier))
               : "memory");
#else
  emulation::arrive(barrier.state);
#endif
}

// Arrives when the copies that this thread has begun are done. Does not wait for them.
__device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
#if defined(__CUDACC__)
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
#else
  emulation::arrive(barrier.state);
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Waits until the phase of this parity has ended.
__device__ __forceinline__ void wait(Barrier& barrier, int parity) {
#if defined(__CUDACC__)
#pragma unroll 1
  for (int i = 0; i < kMostWaits; ++i) {
    std::uint32_t done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
#else
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
#endif
    if (done != 0) return;
  }
  fail_waiting();
#else
  for (int i = 0; emulation::phase(barrier.state) == static_cast<unsigned>(parity); ++i) {
    if (i == emulation::kMostWaits) fail_waiting();
    emulation::let_others_run();
  }
#endif
}

// Of `threads` threads of the block that name the same number, 1 to 15.
__device__ __forceinline__ void wait_for_each_other(int number, int threads) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#else
  emulation::named_barrier(static_cast<unsigned>(number), static_cast<unsigned>(threads));
#endif
}

// --- numbers between blocks, in global memory ---

// Waits until another block has published a value that is not below this one. What it had written before is then
// visible.
__device__ __forceinline__ void wait_until(const std::uint32_t* number, std::uint32_t value) {
#if defined(__CUDACC__)
#pragma unroll 1
  for (int i = 0; i < kMostWaits; ++i) {
    std::uint32_t now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(number) : "memory");
    if (now >= value) return;
    __nanosleep(64);
  }
  fail_waiting();
#else
  if (*number < value) emulation::fail("a block waits for a later one");  // they run one after the other
#endif
}

// By one thread, after those that it speaks for have waited for each other.
__device__ __forceinline__ void publish(std::uint32_t* number, std::uint32_t value) {
#if defined(__CUDACC__)
  asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%0], %1;" ::"l"(number), "r"(value) : "memory");
#else
  *number = value;
#endif
}

// Adds in the memory itself; nobody waits for it. On one address only one block adds at a time: the order is the
// blocks' own.
__device__ __forceinline__ void add_to_global(float* to, float a, float b, float c, float d) {
#if defined(__CUDACC__)
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
  const float4 old = __ldcg(reinterpret_cast<const float4*>(to));
  __stcg(reinterpret_cast<float4*>(to), float4{old.x + a, old.y + b, old.z + c, old.w + d});
#endif
#else
  to[0] += a, to[1] += b, to[2] += c, to[3] += d;
#endif
}

// --- arithmetic ---

__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}

// Two numbers as 16-bit floats of type S, `low` in the lower half.
template <class S>
__device__ __forceinline__ std::uint32_t packed(float low, float high) {
#if defined(__CUDACC__)
  std::uint32_t pair;
  if constexpr (std::is_same_v<S, Float16>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  if constexpr (std::is_same_v<S, Float16>) {
    return to_float16(low).bits | static_cast<std::uint32_t>(to_float16(high).bits) << 16;
  } else {
    return to_bfloat16(low).bits | static_cast<std::uint32_t>(to_bfloat16(high).bits) << 16;
  }
#endif
}

template <class S>
__device__ __forceinline__ float widened_half(std::uint32_t bits) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<S, Float16>) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<std::uint16_t>(bits)));
    return value;
  }
#endif
  return to_float(S{static_cast<std::uint16_t>(bits)});
}
template <class S>
__device__ __forceinline__ float low_half(std::uint32_t pair) {
  return widened_half<S>(pair & 0xffffu);
}
template <class S>
__device__ __forceinline__ float high_half(std::uint32_t pair) {
  return widened_half<S>(pair >> 16);
}

}  // namespace fusestep::cuda
