#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace fusestep {

// Each is the same sources compiled for one instruction set (CMakeLists.txt).
namespace scalar {
Backend make_backend();
}
#if defined(__x86_64__)
namespace avx2 {
Backend make_backend();
}
namespace avx512 {
Backend make_backend();
}
#elif defined(__aarch64__)
namespace neon {
Backend make_backend();
}
#endif

namespace {

struct Level {
  const char* name;
  bool (*supported)();
  Backend (*make)();
};

// From the lowest to the highest.
const Level kLevels[] = {
    {"scalar", [] { return true; }, scalar::make_backend},
#if defined(__x86_64__)
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); },
     avx2::make_backend},
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     avx512::make_backend},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, neon::make_backend},
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

Backend chosen;

}  // namespace

void choose_simd_level() { chosen = wanted_level().make(); }

const char* simd_level() { return chosen.name; }

std::vector<std::string> compiled_simd_levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) names.emplace_back(level.name);
  return names;
}

const Backend& backend_for(Device device, const Argument& argument) {
  if (device.type == kDeviceCpu) return chosen;
  refuse_value(argument, "an array in CPU memory", "one on a CUDA device",
               "This build has no CUDA backend (`fusestep info` lists what it has): move the tensors to the CPU.");
}

}  // namespace fusestep
