// The options of attention and of the masked softmax, as one tuple.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/tensor.h"
#include "operations/attention.h"

namespace fusestep {

// In this order: mask, causal, window, key_lengths, scale, dropout_p, seed, offset, and for attention alone
// alibi_slopes, softcap, cu_seqlens_q, cu_seqlens_k. None keeps a default. Arrays are held by the reader.
AttentionOptions read_attention_options(const pybind11::tuple& given, TensorReader& reader, const char* operation);

}  // namespace fusestep
