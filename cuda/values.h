// Reading and writing elements of any storage type as the type that the arithmetic is done in.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "math/lowp.h"
#include "tensors/view.h"

namespace fusestep::cuda {

template <class T>
__device__ __forceinline__ T widened(float x) {
  return static_cast<T>(x);
}
template <class T>
__device__ __forceinline__ T widened(double x) {
  return static_cast<T>(x);
}
template <class T>
__device__ __forceinline__ T widened(Float16 x) {
  return static_cast<T>(to_float(x));
}
template <class T>
__device__ __forceinline__ T widened(BFloat16 x) {
  return static_cast<T>(to_float(x));
}

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, Float16& to) { to = to_float16(value); }
__device__ __forceinline__ void narrow(float value, BFloat16& to) { to = to_bfloat16(value); }

template <class T>
__device__ __forceinline__ T minus_infinity() {
  return static_cast<T>(-INFINITY);
}

// The device's own: the bits of a softmax are not promised to equal the CPU's.
__device__ __forceinline__ float power_of_two(float x) { return ::exp2f(x); }
__device__ __forceinline__ double power_of_two(double x) { return ::exp2(x); }

// Neighbours that are read or written by one instruction.
template <class S, int kPack>
struct alignas(sizeof(S) * kPack) Pack {
  S value[kPack];
};

// As many as 16 bytes of T hold.
template <class T>
inline constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

template <class S, int kPack>
__device__ __forceinline__ bool is_aligned(const S* data) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(Pack<S, kPack>) == 0;
}

template <class S, int kPack>
__device__ __forceinline__ const Pack<S, kPack>& pack_at(const S* data) {
  return *reinterpret_cast<const Pack<S, kPack>*>(data);
}

template <class S, int kPack>
__device__ __forceinline__ Pack<S, kPack>& pack_at(S* data) {
  return *reinterpret_cast<Pack<S, kPack>*>(data);
}

// Writes neighbours by one instruction. nvcc makes a store for each value of an assigned pack; __stcg (past the
// first-level cache, which nothing reads again) is one store.
__device__ __forceinline__ void store_neighbours(double* to, const double (&from)[2]) {
  __stcg(reinterpret_cast<double2*>(to), double2{from[0], from[1]});
}
__device__ __forceinline__ void store_neighbours(float* to, const float (&from)[4]) {
  __stcg(reinterpret_cast<float4*>(to), float4{from[0], from[1], from[2], from[3]});
}
template <class Half>
__device__ __forceinline__ void store_neighbours(Half* to, const Half (&from)[4]) {
  const auto word = [](Half low, Half high) { return low.bits | static_cast<unsigned>(high.bits) << 16; };
  __stcg(reinterpret_cast<uint2*>(to), uint2{word(from[0], from[1]), word(from[2], from[3])});
}

template <class Half>
__device__ __forceinline__ void store_neighbours(Half* to, const Half (&from)[8]) {
  const auto word = [](Half low, Half high) { return low.bits | static_cast<unsigned>(high.bits) << 16; };
  __stcg(reinterpret_cast<uint4*>(to),
         uint4{word(from[0], from[1]), word(from[2], from[3]), word(from[4], from[5]), word(from[6], from[7])});
}

// Calls visit(data) with a pointer of the dtype's own type.
template <class Visit>
__device__ __forceinline__ void with_dtype(DType dtype, void* data, const Visit& visit) {
  switch (dtype) {
    case DType::float32:
      return visit(static_cast<float*>(data));
    case DType::float64:
      return visit(static_cast<double*>(data));
    case DType::float16:
      return visit(static_cast<Float16*>(data));
    default:
      return visit(static_cast<BFloat16*>(data));
  }
}

}  // namespace fusestep::cuda
