// Memory that a kernel works in.
#pragma once

#include <cstddef>

namespace fusestep {

// At least `bytes` that belong to the calling thread until it asks again, aligned for every vector. Kept from call to
// call, so that small work does not pay for fresh pages; a stack would be too small for it on some systems.
void* thread_scratch(std::size_t bytes);

}  // namespace fusestep
