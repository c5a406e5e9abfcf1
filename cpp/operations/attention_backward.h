// The backward pass of masked softmax attention.
#pragma once

#include <optional>

#include "operations/attention.h"

namespace fusestep {

// Those that are not wanted are absent.
struct AttentionGradViews {
  TensorView grad_out;
  std::optional<TensorView> grad_query;
  std::optional<TensorView> grad_key;
  std::optional<TensorView> grad_value;
  std::optional<TensorView> grad_mask;
};

class AttentionBackwardPlan {
 public:
  // `out` and `lse` are what the forward pass wrote, with the same options.
  AttentionBackwardPlan(const char* operation, const TensorView& query, const TensorView& key, const TensorView& value,
                        const TensorView& out, const TensorView& lse, const AttentionGradViews& grads,
                        const AttentionOptions& options);

  void run(const Stream& stream) const;

 private:
  void check_grad(const TensorView& grad, const TensorView& of, const Argument& argument);
  void add_grad_mask(const TensorView& grad_mask, const AttentionOptions& options, const Argument& argument);

  AttentionPlan plan_;
  OverlapCheck overlaps_;
  AttentionGrads grads_{};
};

}  // namespace fusestep
