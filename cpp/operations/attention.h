// Masked softmax attention: what is asked for, checked, and run. Everything is checked while the plan is made; running
// it cannot fail half-way.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "jobs/attention.h"
#include "operations/dropout_seed.h"
#include "tensors/check.h"
#include "tensors/overlap.h"
#include "tensors/view.h"

namespace fusestep {

// As the caller gave them.
struct AttentionOptions {
  std::optional<TensorView> mask;
  Causal causal = Causal::none;
  std::int64_t window_left = kUnlimited;
  std::int64_t window_right = kUnlimited;
  std::optional<TensorView> key_lengths;
  std::optional<TensorView> cu_seqlens_q;
  std::optional<TensorView> cu_seqlens_k;
  std::optional<TensorView> alibi_slopes;
  double softcap = 0;           // 0: none
  std::optional<double> scale;  // 1 / sqrt(head_dim)
  double dropout_p = 0;
  SeedOption seed;
  std::uint32_t offset = 0;
};

class AttentionPlan {
 public:
  // Refuses what cannot be done, but for the results: they may be made when their shape is known.
  AttentionPlan(const char* operation, const TensorView& query, const TensorView& key, const TensorView& value,
                const AttentionOptions& options);

  // (batch, heads, queries, value dim). That of lse lacks the last.
  const std::int64_t (&out_shape() const)[4] { return out_shape_; }

  // The results: written by the forward pass, which needs no `lse`, and read by the backward one.
  void add_results(const TensorView& out, const TensorView* lse);

  // What both passes read, for the check that it is not written. Results that were made for the call need no check.
  static void note_inputs(OverlapCheck& overlaps, const char* operation, const TensorView& query, const TensorView& key,
                          const TensorView& value, const AttentionOptions& options);

  void forward(const Stream& stream) const;

  const AttentionJob& job() const { return job_; }
  const Backend& backend() const { return *backend_; }

 private:
  void add_lengths(const TensorView& query, const TensorView& key, const AttentionOptions& options);
  void list_sequences();
  void add_mask(const TensorView& mask, const TensorView& query, const TensorView& key);
  void check_alibi(const TensorView& slopes, const TensorView& query, std::int64_t batch);

  const char* operation_;
  const Backend* backend_ = nullptr;
  AttentionJob job_{};
  Device device_{};
  bool packed_ = false;
  std::int64_t out_shape_[4] = {};
  std::vector<AttentionSequence> sequences_;
};

// Refuses numbers that make no sense, and cu_seqlens of one side only.
void check_attention_options(const char* operation, const AttentionOptions& options);

// The four-dimensional view as the kernels address it. A packed one keeps its rows apart by their sequences alone.
HeadTensor head_tensor(const TensorView& view, bool packed);

}  // namespace fusestep
