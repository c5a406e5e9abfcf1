// Which sequence, head and rows a block of a job's list is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "jobs/attention.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Which sequence a unit of a list belongs to. first: of each sequence its first unit, then the end.
inline std::int64_t sequence_of(const std::int64_t* first, std::int64_t sequences, std::int64_t unit) {
  return std::upper_bound(first, first + sequences, unit) - first - 1;
}

struct QueryBlock {
  const AttentionSequence& sequence;
  std::int64_t head;
  std::int64_t query0;
};

// Block `b` of the list of all query blocks.
inline QueryBlock query_block(const AttentionJob& job, std::int64_t b) {
  const AttentionSequence& sequence =
      *(std::upper_bound(job.sequences, job.sequences + job.num_sequences, b,
                         [](std::int64_t block, const AttentionSequence& s) { return block < s.first_block; }) -
        1);
  const std::int64_t a_head = (sequence.queries + kQueryBlock - 1) / kQueryBlock;
  const std::int64_t in_sequence = b - sequence.first_block;
  return {sequence, in_sequence / a_head, in_sequence % a_head * kQueryBlock};
}

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
