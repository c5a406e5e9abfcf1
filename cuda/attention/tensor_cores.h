// Attention on tensor cores, of float16 and bfloat16. The functions are compiled once for each machine (Sm80, Sm90),
// dtype and depth (shapes.h); a head dim takes the next depth.
#pragma once

#include "cuda/attention/arguments.h"
#include "cuda/memory.h"

namespace fusestep::cuda {

// query_tiles are of ForwardShape<Machine, kDepth>::kQueries rows.
template <class Machine, class S, int kDepth>
void run_forward(Session& session, const AttentionArguments& arguments);

// The gradients of query, key and value.
template <class Machine, class S, int kDepth>
void run_backward(Session& session, const AttentionArguments& arguments);

}  // namespace fusestep::cuda
