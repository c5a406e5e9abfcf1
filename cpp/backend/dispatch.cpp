#include "backend/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/backend.h"
#include "cpu/kernel_table.h"
#if defined(FUSESTEP_HAS_CUDA) || defined(FUSESTEP_EMULATES_CUDA)
#include "cuda/backend.h"
#include "cuda/devices.h"
#endif

namespace fusestep {

// Each is the same sources compiled for one instruction set (CMakeLists.txt).
namespace scalar {
CpuKernels make_kernels();
}
#if defined(__x86_64__)
namespace avx2 {
CpuKernels make_kernels();
}
namespace avx512 {
CpuKernels make_kernels();
}
#elif defined(__aarch64__)
namespace neon {
CpuKernels make_kernels();
}
#endif

namespace {

struct Level {
  const char* name;
  bool (*supported)();
  CpuKernels (*make)();
};

// From the lowest to the highest.
const Level kLevels[] = {
    {"scalar", [] { return true; }, scalar::make_kernels},
#if defined(__x86_64__)
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); },
     avx2::make_kernels},
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     avx512::make_kernels},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, neon::make_kernels},
#endif
};

const Level& wanted_level() {
  const char* wanted = std::getenv("FUSESTEP_SIMD");
  const Level* best = nullptr;
  std::string names;
  for (const Level& level : kLevels) {
    if (level.supported()) best = &level;
    names += (names.empty() ? "" : ", ") + std::string(level.name);
    if (wanted == nullptr || wanted != std::string(level.name)) continue;
    if (!level.supported()) {
      throw std::runtime_error(std::string("FUSESTEP_SIMD: expected a level that this CPU has, got ") + level.name +
                               ". Unset it, or choose a lower one.");
    }
    return level;
  }
  if (wanted != nullptr && *wanted != '\0') {
    throw std::runtime_error("FUSESTEP_SIMD: expected one of " + names + ", got " + wanted + ".");
  }
  return *best;
}

CpuKernels chosen;

}  // namespace

void choose_simd_level() { chosen = wanted_level().make(); }

const CpuKernels& cpu_kernels() { return chosen; }

const char* simd_level() { return chosen.name; }

std::vector<std::string> compiled_simd_levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) names.emplace_back(level.name);
  return names;
}

#if defined(FUSESTEP_HAS_CUDA)

const Backend& backend_for(Device device, const Argument& argument) {
  return device.type == kDeviceCpu ? kCpuBackend : cuda::backend_for(device, argument);
}

CudaInfo cuda_info() { return {cuda::architectures(), cuda::devices(), cuda::attention_paths()}; }

#elif defined(FUSESTEP_EMULATES_CUDA)

// The tests' module (tests/cuda): memory is the CPU's, kernels are those of cuda/.
const Backend& backend_for(Device device, const Argument& argument) { return cuda::backend_for(device, argument); }

CudaInfo cuda_info() { return {cuda::architectures(), cuda::devices(), cuda::attention_paths()}; }

#else

const Backend& backend_for(Device device, const Argument& argument) {
  if (device.type == kDeviceCpu) return kCpuBackend;
  refuse_value(
      argument, "an array in CPU memory", "one on a CUDA device",
      "This build has no CUDA backend: install fusestep from source where nvcc is found, or move the tensors to "
      "the CPU.");
}

CudaInfo cuda_info() { return {}; }

#endif

}  // namespace fusestep
