// Which of the compiled variants of a kernel a job needs.
#pragma once

#include "cuda/attention/scores.h"

namespace fusestep::cuda {

inline Mask mask_of(const AttentionJob& job) {
  if (job.softcap != 0 || job.alibi.data != nullptr || job.scale <= 0) return Mask::any;
  if (job.mask.data == nullptr) return Mask::none;
  return job.mask_dtype == DType::boolean ? Mask::boolean : Mask::additive;
}

// Calls run<mask, drops>(). Depths above 128 are rare and compiled once, for everything.
template <int kDepth, class Run>
void with_variant(const AttentionJob& job, const Run& run) {
  const Mask mask = mask_of(job);
  const bool drops = job.dropout.drops();
  if constexpr (kDepth <= 128) {
    if (mask == Mask::none)
      return drops ? run.template operator()<Mask::none, true>() : run.template operator()<Mask::none, false>();
    if (mask == Mask::boolean) {
      return drops ? run.template operator()<Mask::boolean, true>() : run.template operator()<Mask::boolean, false>();
    }
    if (mask == Mask::additive) {
      return drops ? run.template operator()<Mask::additive, true>() : run.template operator()<Mask::additive, false>();
    }
  }
  run.template operator()<Mask::any, true>();
}

}  // namespace fusestep::cuda
