// The order in which the gradient of a mask is summed up in the backward pass of the masked softmax: the same for every
// backend, so that its bits are too.
#pragma once

#include <cstdint>

#include "jobs/masked_softmax.h"
#include "math/hd.h"

namespace fusestep {

struct SoftmaxPosition {
  std::int64_t batch;
  std::int64_t head;
  std::int64_t query;
};

// Rows of one block of the backward pass. They are summed up to one part of a mask's gradient.
inline constexpr std::int64_t kSoftmaxBlock = 64;

// The rows of a job, ordered by the row of the mask that they add to: its members are all positions along the
// dimensions over which the mask was broadcast. Without a gradient of a mask all rows are members of one. Inline in
// full: the objects of every instruction set use it.
struct SoftmaxBlocks {
  std::int64_t sizes[3];  // batch, head, query
  const bool* mask_has;
  std::int64_t mask_rows = 1;
  std::int64_t members = 1;
  std::int64_t per_mask_row;
  std::int64_t mask_columns;

  FUSESTEP_HD SoftmaxBlocks(const SoftmaxJob& job, const SoftmaxGrads& grads)
      : sizes{job.batch, job.heads, job.queries}, mask_has(grads.mask_has) {
    for (int d = 0; d < 3; ++d) (mask_has[d] ? mask_rows : members) *= sizes[d];
    per_mask_row = (members + kSoftmaxBlock - 1) / kSoftmaxBlock;
    mask_columns = mask_has[3] ? job.keys : 1;
  }

  FUSESTEP_HD std::int64_t count() const { return mask_rows * per_mask_row; }

  FUSESTEP_HD SoftmaxPosition position(std::int64_t mask_row, std::int64_t member) const {
    std::int64_t at[3];
    for (int d = 2; d >= 0; --d) {
      std::int64_t& index = mask_has[d] ? mask_row : member;
      at[d] = sizes[d] == 0 ? 0 : index % sizes[d];
      index = sizes[d] == 0 ? 0 : index / sizes[d];
    }
    return {at[0], at[1], at[2]};
  }
};

}  // namespace fusestep
