// The table of one instruction set.
#include "cpu/kernels.h"

#define FUSESTEP_TEXT_OF(x) #x
#define FUSESTEP_TEXT(x) FUSESTEP_TEXT_OF(x)

namespace fusestep::FUSESTEP_ISA {

Backend make_backend() {
  Backend backend{};
  backend.name = FUSESTEP_TEXT(FUSESTEP_ISA);
  fill_updates(backend);
  fill_grads(backend);
  fill_stream(backend);
  return backend;
}

}  // namespace fusestep::FUSESTEP_ISA
