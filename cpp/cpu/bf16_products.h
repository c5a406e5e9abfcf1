// Whether this machine multiplies bfloat16, and lets this process do so.
#pragma once

#include <optional>
#include <string>

#include "cpu/kernel_table.h"

namespace fusestep {

#if defined(__x86_64__)
bool has_avx512_bf16();

// Asks the operating system once: it keeps the registers of AMX for processes that asked, and may refuse.
bool has_amx_bf16();
#endif

// The kernels of a level by its name, for tests: none where there is no such level, or not on this machine.
std::optional<Bf16Attention> bf16_attention_of(const std::string& name);

}  // namespace fusestep
