// What a backend is: a table of functions, one for each operation, on jobs that are checked and laid out already. The
// CPU (cpp/cpu/) and CUDA (cuda/) each fill one; dispatch.cpp picks by the device of the tensors.
#pragma once

#include "jobs/attention.h"
#include "jobs/cross_entropy.h"
#include "jobs/dropout.h"
#include "jobs/grads.h"
#include "jobs/masked_softmax.h"
#include "jobs/step.h"
#include "math/clip.h"
#include "tensors/view.h"

namespace fusestep {

// Where and when the work runs; on the CPU at once, by the calling thread and those that help it.
struct Stream {
  Device device{kDeviceCpu, 0};
  void* handle = nullptr;  // CUDA's
  bool wait = false;       // no other work is ordered after this stream: return when it is done
};

struct Backend {
  const char* name;
  bool defers;        // takes deferred steps
  bool strided_8bit;  // updates parameters with states in 8 bits whose other tensors lie differently in memory

  // Norm (math/norm.h), clip, update, rewriting of the gradients, step counts. Throws NonfiniteNorm, with nothing
  // changed. The result of a deferred step stays on the device.
  StepResult (*step)(const StepJob&, const Stream&);

  // The sum of the norm (math/norm.h) before finish(), into the scalar `out` on a device, else returned.
  std::optional<double> (*total)(const GradJob&, NormKind, const TensorView& out, const Stream&);

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

  // Writes loss, lse and the gradient; nullptr where a backend has no such kernel.
  void (*cross_entropy)(const CrossEntropyJob&, const Stream&);
};

}  // namespace fusestep
