// The table that each CPU instruction set fills with its kernels: one slice of a job each. cpu_backend.cpp shares the
// slices out among threads.
#pragma once

#include "backend.h"

namespace fusestep {

struct UpdateJob {
  const UpdateTensor* tensors;  // [num_tensors], then one more whose begin is the end of the line
  std::int64_t num_tensors;
  std::int64_t numel;
  const unsigned char* coefficients;
  GradTransform<double> transform;
};

struct CpuKernels {
  const char* name;

  // update[variant][DTypePair]: one slice of an optimizer step.
  void (*update[UpdateVariants::size][kDTypePairs])(const UpdateJob&, std::int64_t slice);

  // norm[NormKind]: the slice's sum of |g|, sum of g^2 or max of |g|, in double.
  double (*norm[3])(const GradJob&, std::int64_t slice);

  // One slice of g <- transform(g).
  void (*transform)(const GradJob&, GradTransform<double>, std::int64_t slice);

  // One slice of out <- dropout(input), or of out <- residual + dropout(input).
  void (*dropout)(const DropoutJob&, std::int64_t slice);

  // Query blocks [first, last) of a job's list: their rows of out and lse.
  void (*attention_forward)(const AttentionJob&, std::int64_t first, std::int64_t last);

  // The floor that benchmarks compare with: elements [begin, end) of every array are read, those of the first
  // `num_written` are written back, with one fma each and nothing else.
  void (*stream)(float* const* arrays, int num_arrays, int num_written, std::int64_t begin, std::int64_t end);
};

// Those of the level that dispatch.cpp has chosen.
const CpuKernels& cpu_kernels();

}  // namespace fusestep
