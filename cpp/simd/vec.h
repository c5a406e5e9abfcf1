// The vector type of the instruction set that this object is compiled for.
#pragma once

#if !defined(FUSESTEP_ISA)
#error "compiled once per instruction set, with FUSESTEP_ISA and FUSESTEP_ISA_... (see CMakeLists.txt)"
#elif defined(FUSESTEP_ISA_AVX512)
#include "simd/avx512.h"
#elif defined(FUSESTEP_ISA_AVX2)
#include "simd/avx2.h"
#elif defined(FUSESTEP_ISA_NEON)
#include "simd/neon.h"
#else
#include "simd/scalar.h"
#endif
