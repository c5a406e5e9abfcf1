// The table of functions that every backend fills (each CPU instruction set does; CUDA will), and the jobs they run on.
//
// A job is a list of tensors laid end to end as one line of elements, cut into slices of kSliceElements. A slice is the
// unit of work: it may hold a thousand small tensors or a piece of a large one, so a list of small tensors costs what
// its elements cost. Slices depend on the list alone, never on the number of threads: a partial result that belongs to
// a slice is the same on any number of them.
#pragma once

#include <cstdint>

#include "math/clip.h"
#include "math/optim/all.h"
#include "view.h"

namespace fusestep {

inline constexpr std::int64_t kSliceElements = 16384;

// A tensor that does not lie in memory the way its companions do is walked by these. Dimensions are merged where all
// operands allow it, and ordered so that the first operand is walked as contiguously as it can be.
inline constexpr int kMaxDims = 16;
inline constexpr int kMaxOperands = 2 + kMaxStates;

struct StridedLayout {
  int ndim;
  std::int64_t shape[kMaxDims];
  std::int64_t strides[kMaxOperands][kMaxDims];  // in elements
};

// One tensor of an update: operands are parameter, gradient, states.
struct UpdateTensor {
  void* operand[kMaxOperands];
  const StridedLayout* layout;  // nullptr: all operands are flat and lie alike
  std::int64_t begin;           // where its elements start on the job's line
  std::int64_t coefficients;    // byte offset into the job's coefficients
};

struct UpdateJob {
  const UpdateTensor* tensors;  // [num_tensors], then one more whose begin is the end of the line
  std::int64_t num_tensors;
  std::int64_t numel;
  const unsigned char* coefficients;  // Update::Coefficients<T>, one for each distinct (group, step)
  GradTransform<double> transform;
};

// One tensor that is read (norm) or rewritten (scale, clamp).
struct GradTensor {
  void* data;
  const StridedLayout* layout;
  std::int64_t begin;
  DType dtype;
};

struct GradJob {
  const GradTensor* tensors;  // [num_tensors], then one more whose begin is the end of the line
  std::int64_t num_tensors;
  std::int64_t numel;
};

constexpr std::int64_t slices(std::int64_t numel) { return (numel + kSliceElements - 1) / kSliceElements; }

enum class NormKind { one, two, inf };

// The dtypes of (parameter, gradient) that updates are compiled for.
enum class DTypePair { f32_f32, f32_bf16, f32_f16, f64_f64 };
inline constexpr int kDTypePairs = 4;

struct Backend {
  const char* name;

  // update[variant][DTypePair]: one slice of an optimizer step.
  void (*update[UpdateVariants::size][kDTypePairs])(const UpdateJob&, std::int64_t slice);

  // norm[NormKind]: the slice's sum of |g|, sum of g^2 or max of |g|, in double.
  double (*norm[3])(const GradJob&, std::int64_t slice);

  // One slice of g <- transform(g).
  void (*transform)(const GradJob&, GradTransform<double>, std::int64_t slice);

  // The floor that benchmarks compare with: elements [begin, end) of every array are read, those of the first
  // `num_written` are written back, with one fma each and nothing else.
  void (*stream)(float* const* arrays, int num_arrays, int num_written, std::int64_t begin, std::int64_t end);
};

}  // namespace fusestep
