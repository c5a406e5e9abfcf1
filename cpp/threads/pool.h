// Our own threads, for processes without an OpenMP runtime.
#pragma once

#include "threads/work.h"

namespace fusestep::pool {

// Runs the work on up to `threads` threads, the caller being one. False, with nothing done, when the pool is at work
// for another caller.
bool run(detail::Work& work, int threads);

}  // namespace fusestep::pool
