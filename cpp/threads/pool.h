// Our own threads, for processes without an OpenMP runtime.
#pragma once

#include "threads/work.h"

namespace fusestep::pool {

// Runs the work on up to `threads` threads, the caller being one. Returns false, with nothing done, while another
// caller uses the pool.
bool run(detail::Work& work, int threads);

}  // namespace fusestep::pool
