#pragma once

#include "backend/backend.h"

namespace fusestep::cuda {

void run_cross_entropy(const CrossEntropyJob&, const Stream&);

}  // namespace fusestep::cuda
