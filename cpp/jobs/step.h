// A step of an optimizer: what is updated, with which coefficients, and how the gradients are clipped.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "jobs/clipping.h"
#include "jobs/grads.h"
#include "math/eight_bit.h"
#include "math/optim/all.h"
#include "math/rounding.h"
#include "tensors/strided_layout.h"
#include "tensors/view.h"

namespace fusestep {

// The operands of an update: the parameter, its gradient, its states from kFirstState on, and what some kinds of
// rounding keep beside the parameter.
inline constexpr int kFirstState = 2;
inline constexpr int kCompanion = kFirstState + kMaxStates;  // the compensation (kahan) or the float32 copy (master)

struct UpdateTensor {
  void* operand[kMaxOperands];  // nullptr: there is none
  DType dtype[kMaxOperands];
  float* absmax[kMaxStates];  // of states of uint8: the scale of each block (math/eight_bit.h)
  Rounding rounding;
  std::uint32_t parameter;      // its number in the step, for stochastic rounding
  ShardPositions positions;     // for stochastic rounding
  const StridedLayout* layout;  // nullptr: all operands are flat and lie alike
  std::int64_t numel;
  std::int64_t begin;         // where its elements start among those of all tensors
  std::int64_t coefficients;  // byte offset into the job's coefficients: an UpdateHeader, then Coefficients<T>
};

// What every optimizer's coefficients begin with.
struct alignas(16) UpdateHeader {
  std::uint64_t seed;  // of stochastic rounding
  std::uint32_t step;  // its lower 32 bits
};

// The type T that an update is computed in: double for float64 parameters, float for all others.
enum class Arithmetic { float32, float64 };
inline constexpr int kArithmetics = 2;

constexpr Arithmetic arithmetic_of(DType dtype) {
  return dtype == DType::float64 ? Arithmetic::float64 : Arithmetic::float32;
}

// Tensors that one kernel serves with one sign of the gradient.
struct UpdateBatch {
  int variant;  // in UpdateVariants
  Arithmetic arithmetic;
  bool maximize;
  bool in_blocks;  // some states are of uint8: tensors begin at multiples of kMomentBlock, with gaps between them
  std::vector<UpdateTensor> tensors;  // and one more, whose begin is their number of elements
};

// The coefficients of a parameter whose step count is on the device.
struct PreparedTensor {
  TensorView count;  // of the steps before this one; goes up by one when the step is applied
  std::int32_t group;
  Arithmetic arithmetic;
  std::uint64_t seed;         // of stochastic rounding
  std::int64_t coefficients;  // byte offset: room for a header and Update::Coefficients<T>, filled on the device
};

// What a step reads and writes on the device when it runs, so that the host does not wait and a CUDA graph can hold
// it. Scalars are 0-dim tensors of float32 or float64; data == nullptr: not given.
struct DeferredStep {
  int optimizer;                       // in Optimizers
  std::vector<unsigned char> options;  // O::Options of each group
  std::vector<TensorView> lr;          // of each group, in place of that of its options
  std::vector<PreparedTensor> tensors;
  TensorView grad_scale;  // in place of the clipping's
  TensorView found_inf;   // the step is left out where it is not 0
  TensorView norm;        // takes the norm, where there is one
  TensorView skipped;     // goes up by one where the step is left out
};

// A step of an optimizer; without batches it is clipping alone.
struct StepJob {
  const char* operation;
  std::vector<UpdateBatch> batches;
  std::vector<unsigned char> coefficients;  // a header and Update::Coefficients<T> for each distinct (group, step)
  GradJob grads;                            // filled where the clipping needs the norm or rewrites
  Clipping clipping;
  TensorView totals;  // parts of the norm's sum, to be added up in place of the gradients; data == nullptr: not given
  std::vector<TensorView> step_counts;  // 0-dim, in host memory: those that go up by one when the step is applied
  std::optional<DeferredStep> deferred;
};

struct StepResult {
  std::optional<double> norm;  // before clipping, where clipping or on_nonfinite needed it
  bool applied;
};

}  // namespace fusestep
