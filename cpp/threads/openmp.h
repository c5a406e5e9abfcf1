// The OpenMP runtime that something else (torch) has brought into this process. Nothing here links OpenMP.
//
// Why its threads and not our own: the idle threads of an OpenMP runtime spin for milliseconds after each parallel
// region. In a training step our kernels and torch's alternate, so threads of our own would wait for a core during that
// time. On two cores a pass over 1M elements between two torch operations took 48 us with torch's threads and 80 us
// with our own.
#pragma once

#include <string>

namespace fusestep::openmp {

struct Runtime {
  // GCC's entry points; libomp and libiomp5 export them too.
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();
  int (*in_parallel)();
  bool
      survives_fork;  // libomp and libiomp5 start new threads in a child; libgomp hangs there if the parent has used it
  std::string name;   // "libgomp"
};

// The runtime that torch uses if torch is loaded, else any that is loaded, else null. Cheap enough for every call: it
// searches again only after another library was loaded.
const Runtime* find();

// Whether parallel regions of this runtime work in this process, which may be a fork of one that has used it.
bool works_here(const Runtime& runtime);

}  // namespace fusestep::openmp
