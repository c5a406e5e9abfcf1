// What a backend is: a table of functions, one for each operation, on jobs that are checked and laid out already. The
// CPU (cpu/backend.cpp) and CUDA (cuda/) each fill one; dispatch.cpp picks by the device of the tensors.
//
// A job is a list of tensors laid end to end as one line of elements, cut into slices of kSliceElements. A slice is the
// unit of work: it may hold a thousand small tensors or a piece of a large one, so a list of small tensors costs what
// its elements cost. Slices depend on the list alone, never on the number of threads: a partial result that belongs to
// a slice is the same on any number of them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "jobs/attention.h"
#include "jobs/clipping.h"
#include "jobs/masked_softmax.h"
#include "math/clip.h"
#include "math/dropout.h"
#include "math/norm.h"
#include "math/optim/all.h"
#include "tensors/view.h"

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

// The dtypes of (parameter, gradient) that updates are compiled for.
enum class DTypePair { f32_f32, f32_bf16, f32_f16, f64_f64 };
inline constexpr int kDTypePairs = 4;

// Tensors that one kernel serves with one sign of the gradient.
struct UpdateBatch {
  int variant;  // in UpdateVariants
  DTypePair dtypes;
  bool maximize;
  std::vector<UpdateTensor> tensors;  // and one more, whose begin is the end of the line
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

// Plain dropout of one tensor. Elements are counted in C order, whatever the layout.
struct DropoutJob {
  const void* input;
  const void* residual;         // nullptr: there is none to add
  void* out;                    // may be input or residual
  const StridedLayout* layout;  // of input, out and residual, in C order; nullptr: all are C-contiguous
  std::int64_t numel;
  DType dtype;
  DropoutRule rule;
};

constexpr std::int64_t slices(std::int64_t numel) { return (numel + kSliceElements - 1) / kSliceElements; }

// The coefficients of a parameter whose step count is on the device.
struct PreparedTensor {
  TensorView count;  // of the steps before this one; goes up by one when the step is applied
  std::int32_t group;
  DType dtype;                // of the parameter
  std::int64_t coefficients;  // byte offset: room for Update::Coefficients<T>, to be filled on the device
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
  std::vector<unsigned char> coefficients;  // Update::Coefficients<T>, one for each distinct (group, step)
  GradJob grads;                            // filled where the clipping needs the norm or rewrites
  Clipping clipping;
  std::vector<TensorView> step_counts;  // 0-dim, in host memory: those that go up by one when the step is applied
  std::optional<DeferredStep> deferred;
};

struct StepResult {
  std::optional<double> norm;  // before clipping, where clipping or on_nonfinite needed it
  bool applied;
};

// Where and when the work runs; on the CPU at once, by the calling thread and those that help it.
struct Stream {
  Device device{kDeviceCpu, 0};
  void* handle = nullptr;  // CUDA's
  bool wait = false;       // nobody else orders work after this stream: return when it is done
};

struct Backend {
  const char* name;
  bool defers;  // takes deferred steps

  // Norm (math/norm.h), clip, update, rewriting of the gradients, step counts. Throws NonfiniteNorm, with nothing
  // changed. The result of a deferred step stays on the device.
  StepResult (*step)(const StepJob&, const Stream&);

  // g <- transform(g)
  void (*transform)(const GradJob&, GradTransform<double>, const Stream&);

  // out <- dropout(input), or residual + dropout(input)
  void (*dropout)(const DropoutJob&, const Stream&);

  // Writes out and lse.
  void (*attention_forward)(const AttentionJob&, const Stream&);

  // Writes the gradients that are wanted.
  void (*attention_backward)(const AttentionJob&, const AttentionGrads&, const Stream&);

  void (*masked_softmax_forward)(const SoftmaxJob&, const Stream&);
  void (*masked_softmax_backward)(const SoftmaxJob&, const SoftmaxGrads&, const Stream&);
};

}  // namespace fusestep
