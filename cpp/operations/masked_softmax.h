// The masked softmax on its own: what is asked for, checked, and run.
#pragma once

#include <vector>

#include "jobs/masked_softmax.h"
#include "operations/attention.h"

namespace fusestep {

class SoftmaxPlan {
 public:
  // The forward pass. Of the options those count that are about masks, scale (default 1) and dropout. `out` may be
  // scores, but no other view of its memory.
  static SoftmaxPlan forward(const char* operation, const TensorView& scores, const TensorView& out,
                             const TensorView& lse, const AttentionOptions& options);

  // The backward pass; `grad_mask` may be null.
  static SoftmaxPlan backward(const char* operation, const TensorView& grad_out, const TensorView& scores,
                              const TensorView& lse, const TensorView& grad_scores, const TensorView* grad_mask,
                              const AttentionOptions& options);

  void run_forward(const Stream& stream) const { backend_->masked_softmax_forward(job(), stream); }
  void run_backward(const Stream& stream) const { backend_->masked_softmax_backward(job(), grads_, stream); }

 private:
  SoftmaxPlan(const char* operation, const TensorView& scores, const TensorView& lse, const AttentionOptions& options);

  void check_like_scores(const TensorView& view, const TensorView& scores, const Argument& argument) const;
  void add_bands(const AttentionOptions& options);
  void add_grad_mask(const TensorView& grad_mask, const AttentionOptions& options);

  SoftmaxJob job() const {
    SoftmaxJob job = job_;
    job.bands = bands_.data();
    return job;
  }

  const char* operation_;
  const Backend* backend_;
  SoftmaxJob job_{};  // without its bands
  SoftmaxGrads grads_{};
  std::vector<Band> bands_;
  OverlapCheck overlaps_;
};

}  // namespace fusestep
