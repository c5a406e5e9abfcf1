// What the files of one instruction set give each other. Everything else in them has internal linkage.
#pragma once

#include "backend.h"

namespace fusestep::FUSESTEP_ISA {

void fill_updates(Backend& backend);
void fill_grads(Backend& backend);
void fill_stream(Backend& backend);

Backend make_backend();

}  // namespace fusestep::FUSESTEP_ISA
