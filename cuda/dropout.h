#pragma once

#include "backend/backend.h"

namespace fusestep::cuda {

void run_dropout(const DropoutJob&, const Stream&);

}  // namespace fusestep::cuda
