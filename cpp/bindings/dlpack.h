// The part of DLPack's ABI (major version 1) that reading needs, declared from the specification
// (https://dmlc.github.io/dlpack/latest/c_api.html), so that no producer's header is needed to build.
//
// Three ways in, newest first:
//   type(x).__dlpack_c_exchange_api__   a capsule with a table of C functions: no Python call a tensor
//   x.__dlpack__(max_version=(1, 0))    a capsule "dltensor_versioned" with a ManagedTensorVersioned
//   x.__dlpack__()                      a capsule "dltensor" with a ManagedTensor (before 1.0): no flags
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusestep::dlpack {

constexpr std::uint32_t kMajorVersion = 1;  // a change of the major version changes the layout

constexpr const char* kExchangeApiName = "dlpack_exchange_api";
constexpr const char* kVersionedName = "dltensor_versioned";
constexpr const char* kUnversionedName = "dltensor";

// Codes of DataType. Those above kBool are formats of 8 bits and fewer (numbers 7 to 17).
enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kOpaque = 3,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6,
};

// Bits of ManagedTensorVersioned::flags.
constexpr std::uint64_t kReadOnly = 1;
constexpr std::uint64_t kIsCopied = 2;

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Device {
  std::int32_t type;  // 1: CPU, 2: CUDA, others: name_of_device() in tensor.cpp
  std::int32_t index;
};

struct DataType {
  std::uint8_t code;  // TypeCode
  std::uint8_t bits;
  std::uint16_t lanes;  // 1 except for vector types
};

struct Tensor {
  void* data;  // the first element lies at data + byte_offset
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null (before 1.2): C-contiguous
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor*);
};

struct ManagedTensorVersioned {
  Version version;
  void* manager;
  void (*deleter)(ManagedTensorVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// The table of __dlpack_c_exchange_api__; it lives as long as the process. Functions that this library does not call
// are kept as untyped pointers for the layout's sake.
struct ExchangeApi {
  Version version;
  ExchangeApi* older;  // the same table in an older major version, or null
  void (*managed_tensor_allocator)();
  void (*managed_tensor_from_object)();
  void (*managed_tensor_to_object)();
  // Fills a view that borrows from the object. 0, or -1 with a Python exception set. May be null.
  int (*tensor_from_object)(void* py_object, Tensor* out);
  // The stream on which the producer works. 0, or -1 with a Python exception set.
  int (*current_work_stream)(std::int32_t device_type, std::int32_t device_index, void** out);
};

static_assert(sizeof(void*) == 8, "DLPack's offsets below are those of a 64-bit machine");
static_assert(sizeof(DataType) == 4);
static_assert(sizeof(Tensor) == 48);
static_assert(offsetof(Tensor, device) == 8);
static_assert(offsetof(Tensor, ndim) == 16);
static_assert(offsetof(Tensor, dtype) == 20);
static_assert(offsetof(Tensor, shape) == 24);
static_assert(offsetof(Tensor, strides) == 32);
static_assert(offsetof(Tensor, byte_offset) == 40);
static_assert(sizeof(ManagedTensor) == 64);
static_assert(sizeof(ManagedTensorVersioned) == 80);
static_assert(offsetof(ManagedTensorVersioned, flags) == 24);
static_assert(offsetof(ManagedTensorVersioned, tensor) == 32);
static_assert(sizeof(ExchangeApi) == 56);
static_assert(offsetof(ExchangeApi, tensor_from_object) == 40);
static_assert(offsetof(ExchangeApi, current_work_stream) == 48);

}  // namespace fusestep::dlpack
