// The OpenMP runtime that something else (torch) has brought into this process. Nothing here links OpenMP.
//
// Why borrow: a runtime's idle threads go on spinning for milliseconds, so threads of our own beside torch's get no
// core when our kernels and torch's alternate, which is what a training step does. On two cores a pass over 1M elements
// between two torch operations took 48 us with torch's threads and 80 us with our own.
#pragma once

#include <string>

namespace fusestep::openmp {

struct Runtime {
  // GCC's entry points; libomp and libiomp5 export them too.
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();
  int (*in_parallel)();
  bool survives_fork;  // libomp and libiomp5 start afresh in a child; libgomp hangs there once the parent has used it
  std::string name;    // "libgomp"
};

// The runtime that torch uses if torch is loaded, else any that is loaded, else null. Cheap: it searches again only
// after another library was loaded, so it may be asked before every call.
const Runtime* find();

// Whether parallel regions of this runtime work in this process, which may be a fork of one that has used it.
bool works_here(const Runtime& runtime);

}  // namespace fusestep::openmp
