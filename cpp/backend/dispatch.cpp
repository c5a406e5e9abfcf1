#include "backend/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/backend.h"
#include "cpu/bf16_products.h"
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

// Attention of bfloat16 alone, on products of bfloat16.
namespace amx_bf16_on_scalar {
Bf16Attention make_bf16_attention();
}
#if defined(__x86_64__)
namespace avx512_bf16_on_avx2 {
Bf16Attention make_bf16_attention();
}
namespace avx512_bf16 {
Bf16Attention make_bf16_attention();
}
namespace amx_bf16 {
Bf16Attention make_bf16_attention();
}
#endif

namespace {

struct Level {
  const char* name;
  bool (*supported)();
  CpuKernels (*make)();
  Bf16Attention (*make_bf16_attention)() = nullptr;  // beside the table of the level that `make` is of

  CpuKernels kernels() const {
    CpuKernels kernels = make();
    kernels.name = name;
    if (make_bf16_attention != nullptr) kernels.bf16_attention = make_bf16_attention();
    return kernels;
  }
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// From the lowest to the highest.
const Level kLevels[] = {
    {"scalar", always, scalar::make_kernels},
#if defined(__x86_64__)
    {"avx2", has_avx2, avx2::make_kernels},
    {"avx512", has_avx512, avx512::make_kernels},
    {"avx512_bf16", [] { return has_avx512() && has_avx512_bf16(); }, avx512::make_kernels,
     avx512_bf16::make_bf16_attention},
    {"amx_bf16", [] { return has_avx512() && has_avx512_bf16() && has_amx_bf16(); }, avx512::make_kernels,
     amx_bf16::make_bf16_attention},
#elif defined(__aarch64__)
    {"neon", always, neon::make_kernels},
#endif
};

// Levels for tests, never chosen unasked: what the instructions of the two highest compute, on CPUs that lack them.
const Level kTwins[] = {
    {"amx_bf16_on_scalar", always, scalar::make_kernels, amx_bf16_on_scalar::make_bf16_attention},
#if defined(__x86_64__)
    {"avx512_bf16_on_avx2", has_avx2, avx2::make_kernels, avx512_bf16_on_avx2::make_bf16_attention},
#endif
};

const Level* level_of(const std::string& name) {
  for (const Level& level : kLevels) {
    if (level.name == name) return &level;
  }
  for (const Level& level : kTwins) {
    if (level.name == name) return &level;
  }
  return nullptr;
}

const Level& wanted_level() {
  const char* wanted = std::getenv("FUSESTEP_SIMD");
  if (wanted != nullptr && *wanted != '\0') {
    const Level* const level = level_of(wanted);
    if (level == nullptr) {
      std::string names;
      for (const Level& known : kLevels) names += (names.empty() ? "" : ", ") + std::string(known.name);
      throw std::runtime_error("FUSESTEP_SIMD: expected one of " + names + ", got " + wanted + ".");
    }
    if (!level->supported()) {
      throw std::runtime_error(std::string("FUSESTEP_SIMD: expected a level that this CPU has, got ") + level->name +
                               ". Unset it, or choose a lower one.");
    }
    return *level;
  }
  const Level* best = kLevels;
  for (const Level& level : kLevels) {
    if (level.supported()) best = &level;
  }
  return *best;
}

CpuKernels chosen;

}  // namespace

void choose_simd_level() { chosen = wanted_level().kernels(); }

const CpuKernels& cpu_kernels() { return chosen; }

const char* simd_level() { return chosen.name; }

std::vector<std::string> compiled_simd_levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) names.emplace_back(level.name);
  return names;
}

std::optional<Bf16Attention> bf16_attention_of(const std::string& name) {
  const Level* const level = level_of(name);
  if (level == nullptr || level->make_bf16_attention == nullptr || !level->supported()) return std::nullopt;
  return level->make_bf16_attention();
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
