#pragma once

#include "backend/backend.h"

namespace fusestep {

void cpu_cross_entropy(const CrossEntropyJob&, const Stream&);

}  // namespace fusestep
