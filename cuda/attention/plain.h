// Attention without tensor cores, of any dtype, in float or double: what float32 and float64 run on, and the gradients
// of masks. Compiled once for each dtype.
//
// A block computes tiles of 32 queries and 32 keys. In the products a thread owns one key and eight queries, its
// warp's. For everything else it owns eight keys in a row of one query: those that share a Philox call.
#pragma once

#include "cuda/attention/arguments.h"
#include "cuda/memory.h"

namespace fusestep::cuda {

inline constexpr int kPlainTile = 32;  // queries, and keys

// query_tiles and key_tiles are of kPlainTile rows.
template <class S>
void run_plain_forward(Session& session, const AttentionArguments& arguments);

// The gradients of query, key and value that are wanted.
template <class S>
void run_plain_backward(Session& session, const AttentionArguments& arguments);

// The mask's gradient: summed up, in a fixed order, over what the mask was broadcast over.
template <class S>
void run_grad_mask(Session& session, const AttentionArguments& arguments);

}  // namespace fusestep::cuda
