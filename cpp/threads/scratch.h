// Temporary memory for kernels.
#pragma once

#include <cstddef>

namespace fusestep {

// At least `bytes` of memory for the calling thread, valid until its next call, aligned for every vector type. The
// memory is kept between calls: new pages would cost more than a small kernel. It may be larger than a stack on some
// systems.
void* thread_scratch(std::size_t bytes);

}  // namespace fusestep
