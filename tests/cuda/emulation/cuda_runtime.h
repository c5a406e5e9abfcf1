// Stands in for the CUDA toolkit's header where the tests compile cuda/ with a C++ compiler: the words of the language,
// and as much of the runtime as the library calls. Device memory is host memory, streams do their work at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __shared__ static  // one block runs at a time
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
  explicit dim3(unsigned x_) : x(x_) {}
  unsigned x;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct uint3 {
  unsigned x;
};
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}

void __syncthreads();
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* address, unsigned value) {  // one thread runs at a time
  const unsigned old = *address;
  *address += value;
  return old;
}
void __syncwarp(unsigned mask = 0xffffffffu);

namespace emulation {
// Every thread of the warp gives 8 bytes; the result is that of thread `from` (itself where there is none).
std::uint64_t exchange(std::uint64_t value, unsigned from);

template <class T>
T exchange_value(T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace emulation

template <class T>
T __shfl_down_sync(unsigned /*mask*/, T value, unsigned delta) {
  return emulation::exchange_value(value, threadIdx.x % 32 + delta);
}
template <class T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int mask) {
  return emulation::exchange_value(value, threadIdx.x % 32 ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_sync(unsigned /*mask*/, T value, int from) {
  return emulation::exchange_value(value, static_cast<unsigned>(from));
}

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorIllegalAddress = 700 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaStreamNonBlocking = 1;
struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
struct cudaDeviceProp {
  char name[256];
  int major, minor;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorMemoryAllocation"; }
inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated", 8, 0};
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 99 * 1024;  // the least of the devices that the kernels are compiled for
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t);
inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// Captures: a test begins and ends one (emulation.cpp). The graph is gone as soon as the capture ends.
struct CUgraph_st;
struct CUuserObject_st {
  void* memory;
  void (*destroy)(void*);
};
using cudaGraph_t = CUgraph_st*;
using cudaUserObject_t = CUuserObject_st*;
constexpr unsigned cudaUserObjectNoDestructorSync = 1;
constexpr unsigned cudaGraphUserObjectMove = 1;
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph);
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* memory, void (*destroy)(void*), unsigned count,
                                 unsigned flags);
cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t object, unsigned count, unsigned flags);
