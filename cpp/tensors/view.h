// How the library represents a tensor: a pointer with its shape, strides, dtype and device. A view owns nothing; its
// maker keeps the memory alive.
#pragma once

#include <cstdint>

#include "math/hd.h"

namespace fusestep {

enum class DType : std::uint8_t { float32, float64, float16, bfloat16, int32, int64, boolean, uint8 };

constexpr bool is_float(DType dtype) { return dtype <= DType::bfloat16; }

FUSESTEP_HD constexpr std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::boolean:
    case DType::uint8:
      return 1;
    default:
      return 2;
  }
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
    default:
      return "bool";
  }
}

struct Device {
  std::int32_t type;  // DLPack's DLDeviceType: 1 = CPU, 2 = CUDA
  std::int32_t index;
  bool operator==(const Device&) const = default;
};

constexpr std::int32_t kDeviceCpu = 1;
constexpr std::int32_t kDeviceCuda = 2;

struct TensorView {
  void* data = nullptr;
  const std::int64_t* shape = nullptr;    // [ndim]
  const std::int64_t* strides = nullptr;  // [ndim], in elements; nullptr: C-contiguous
  std::int64_t numel = 0;
  std::int32_t ndim = 0;
  DType dtype = DType::float32;
  bool read_only = false;
  Device device{kDeviceCpu, 0};
};

}  // namespace fusestep
