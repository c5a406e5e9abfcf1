#include "operations/attention.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "backend/dispatch.h"
#include "operations/attention_checks.h"
#include "tensors/check_view.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

// The last N + 1 offsets of packed sequences: from 0 upwards, to at most `total`.
void check_offsets(const TensorView& view, std::int64_t total, const Argument& argument) {
  if (view.ndim != 1 || view.numel < 1) {
    refuse_value(argument, "N + 1 offsets of N sequences, shape (N + 1,)", "shape " + describe_shape(view));
  }
  const Integers offsets(view, argument);
  if (offsets[0] != 0) refuse_value(argument, "offsets that begin at 0", std::to_string(offsets[0]));
  for (std::int64_t i = 1; i < view.numel; ++i) {
    if (offsets[i] < offsets[i - 1]) {
      refuse_value({argument.operation, argument.name, i}, "offsets that never fall",
                   std::to_string(offsets[i]) + " after " + std::to_string(offsets[i - 1]));
    }
  }
  const std::int64_t last = offsets[view.numel - 1];
  if (last > total) {
    refuse_value(argument, "offsets of at most " + std::to_string(total) + ", the number of rows",
                 std::to_string(last));
  }
}

}  // namespace

void check_attention_options(const char* operation, const AttentionOptions& options) {
  const auto check = [&](bool right, const char* name, const char* expected, double got) {
    if (!right) refuse_value({operation, name}, expected, std::to_string(got));
  };
  check(options.dropout_p >= 0 && options.dropout_p <= 1, "dropout_p", "a probability in [0, 1]", options.dropout_p);
  check(std::isfinite(options.softcap) && options.softcap >= 0, "softcap", "a finite number > 0, or None",
        options.softcap);
  if (options.scale) check(std::isfinite(*options.scale), "scale", "a finite number", *options.scale);
  if (options.cu_seqlens_q.has_value() != options.cu_seqlens_k.has_value()) {
    const bool has_q = options.cu_seqlens_q.has_value();
    refuse_value({operation, has_q ? "cu_seqlens_k" : "cu_seqlens_q"}, "both cu_seqlens_q and cu_seqlens_k, or neither",
                 "one of them");
  }
}

HeadTensor head_tensor(const TensorView& view, bool packed) {
  return {view.data, packed ? 0 : stride_of(view, 0), stride_of(view, 1), stride_of(view, 2), stride_of(view, 3)};
}

AttentionPlan::AttentionPlan(const char* operation, const TensorView& query, const TensorView& key,
                             const TensorView& value, const AttentionOptions& options)
    : operation_(operation), device_(query.device), packed_(options.cu_seqlens_q.has_value()) {
  const auto argument = [&](const char* name) { return Argument{operation, name}; };
  check_attention_options(operation, options);
  if (query.ndim != 4) {
    refuse_value(argument("query"), "4 dimensions (batch, heads, queries, head dim)", describe_shape(query));
  }
  backend_ = &backend_for(query.device, argument("query"));
  const std::int64_t batch = query.shape[0];
  const std::int64_t heads = query.shape[1];
  const std::int64_t queries = query.shape[2];
  const std::int64_t head_dim = query.shape[3];
  if (head_dim < 1 || head_dim > kMaxHeadDim) {
    refuse_value(argument("query"), "a head dim of 1 to " + std::to_string(kMaxHeadDim), std::to_string(head_dim));
  }
  if (key.ndim != 4) {
    refuse_value(argument("key"), "4 dimensions (batch, heads, keys, head dim)", describe_shape(key));
  }
  const std::int64_t kv_heads = key.shape[1];
  const std::int64_t keys = key.shape[2];
  check_dtype(key, query.dtype, argument("key"));
  check_device(key, query.device, argument("key"));
  check_shape(key, {batch, kv_heads, keys, head_dim}, argument("key"));
  if (kv_heads == 0 ? heads != 0 : heads % kv_heads != 0) {
    refuse_value(argument("key"), "a number of heads that divides the " + std::to_string(heads) + " of query",
                 std::to_string(kv_heads));
  }
  if (value.ndim != 4 || value.shape[3] < 1 || value.shape[3] > kMaxHeadDim) {
    refuse_value(argument("value"), "4 dimensions, the last of 1 to " + std::to_string(kMaxHeadDim),
                 describe_shape(value));
  }
  const std::int64_t value_dim = value.shape[3];
  check_dtype(value, query.dtype, argument("value"));
  check_device(value, query.device, argument("value"));
  check_shape(value, {batch, kv_heads, keys, value_dim}, argument("value"));

  if (packed_ && batch != 1) {
    refuse_value(argument("query"), "a batch of 1 where cu_seqlens tell sequences apart", std::to_string(batch));
  }
  job_.dtype = query.dtype;
  job_.heads = heads;
  job_.kv_heads = kv_heads;
  job_.head_dim = head_dim;
  job_.value_dim = value_dim;
  job_.query = head_tensor(query, packed_);
  job_.key = head_tensor(key, packed_);
  job_.value = head_tensor(value, packed_);
  std::ranges::copy(std::initializer_list<std::int64_t>{batch, heads, queries, value_dim}, out_shape_);
  job_.scale = options.scale ? *options.scale : 1 / std::sqrt(static_cast<double>(head_dim));
  job_.softcap = options.softcap;
  job_.dropout = dropout_rule(options.dropout_p, options.seed, options.offset);

  add_sequences(query, key, options);
  const std::int64_t sequences = packed_ ? options.cu_seqlens_q->numel - 1 : batch;
  if (options.mask) add_mask(*options.mask, query, key);
  if (options.alibi_slopes) check_alibi(*options.alibi_slopes, query, sequences);
}

void AttentionPlan::add_results(const TensorView& out, const TensorView* lse) {
  const Argument out_argument{operation_, "out"};
  check_dtype(out, job_.dtype, out_argument);
  check_device(out, device_, out_argument);
  const auto [batch, heads, queries, value_dim] = out_shape_;
  check_shape(out, {batch, heads, queries, value_dim}, out_argument);
  job_.out = head_tensor(out, packed_);
  if (lse == nullptr) return;
  const Argument lse_argument{operation_, "lse"};
  check_dtype(*lse, job_.dtype == DType::float64 ? DType::float64 : DType::float32, lse_argument);
  check_device(*lse, device_, lse_argument);
  check_shape(*lse, {batch, heads, queries}, lse_argument);
  job_.lse = {lse->data, packed_ ? 0 : stride_of(*lse, 0), stride_of(*lse, 1), stride_of(*lse, 2), 0};
}

void AttentionPlan::note_inputs(OverlapCheck& overlaps, const char* operation, const TensorView& query,
                                const TensorView& key, const TensorView& value, const AttentionOptions& options) {
  overlaps.reads(query, {operation, "query"});
  overlaps.reads(key, {operation, "key"});
  overlaps.reads(value, {operation, "value"});
  if (options.mask) overlaps.reads(*options.mask, {operation, "mask"});
  if (options.alibi_slopes) overlaps.reads(*options.alibi_slopes, {operation, "alibi_slopes"});
}

void AttentionPlan::add_sequences(const TensorView& query, const TensorView& key, const AttentionOptions& options) {
  const std::int64_t total_q = query.shape[2];
  const std::int64_t total_k = key.shape[2];
  std::int64_t count = query.shape[0];
  std::optional<Integers> offsets_q;
  std::optional<Integers> offsets_k;
  if (packed_) {
    const Argument argument_q{operation_, "cu_seqlens_q"};
    const Argument argument_k{operation_, "cu_seqlens_k"};
    check_offsets(*options.cu_seqlens_q, total_q, argument_q);
    check_offsets(*options.cu_seqlens_k, total_k, argument_k);
    count = options.cu_seqlens_q->numel - 1;
    check_shape(*options.cu_seqlens_k, {count + 1}, argument_k);
    offsets_q.emplace(*options.cu_seqlens_q, argument_q);
    offsets_k.emplace(*options.cu_seqlens_k, argument_k);
  }
  std::optional<Integers> lengths;
  if (options.key_lengths) {
    check_shape(*options.key_lengths, {count}, {operation_, "key_lengths"});
    lengths.emplace(*options.key_lengths, Argument{operation_, "key_lengths"});
  }

  sequences_.reserve(static_cast<std::size_t>(count) + 1);
  const auto add = [&](AttentionSequence sequence, std::int64_t key_length) {
    sequence.batch = static_cast<std::int64_t>(sequences_.size());
    sequence.band = make_band(options.causal, options.window_left, options.window_right, sequence.queries, key_length);
    sequence.first_block = job_.query_blocks;
    job_.query_blocks += job_.heads * ((sequence.queries + kQueryBlock - 1) / kQueryBlock);
    sequences_.push_back(sequence);
  };
  for (std::int64_t n = 0; n < count; ++n) {
    AttentionSequence sequence{};
    sequence.queries = total_q;
    sequence.keys = total_k;
    if (packed_) {
      sequence.query_begin = (*offsets_q)[n];
      sequence.key_begin = (*offsets_k)[n];
      sequence.queries = (*offsets_q)[n + 1] - sequence.query_begin;
      sequence.keys = (*offsets_k)[n + 1] - sequence.key_begin;
    }
    std::int64_t key_length = sequence.keys;
    if (lengths) {
      const std::int64_t length = (*lengths)[n];
      if (packed_ ? length < 0 : length < 0 || length > sequence.keys) {
        refuse_value({operation_, "key_lengths", n}, "0 to " + std::to_string(sequence.keys), std::to_string(length));
      }
      key_length = std::min(length, key_length);
    }
    add(sequence, key_length);
  }
  if (packed_) {
    // Rows that belong to no sequence attend to nothing and are attended to by nothing.
    AttentionSequence rest{};
    rest.query_begin = (*offsets_q)[count];
    rest.key_begin = (*offsets_k)[count];
    rest.queries = total_q - rest.query_begin;
    rest.keys = total_k - rest.key_begin;
    if (rest.queries > 0 || rest.keys > 0) add(rest, 0);
  }
  job_.sequences = sequences_.data();
  job_.num_sequences = static_cast<std::int64_t>(sequences_.size());
}

void AttentionPlan::add_mask(const TensorView& mask, const TensorView& query, const TensorView& key) {
  const std::int64_t sizes[] = {query.shape[0], query.shape[1], query.shape[2], key.shape[2]};
  job_.mask = mask_tensor(mask, query, sizes, {operation_, "mask"});
  if (packed_) job_.mask.batch = 0;
  job_.mask_dtype = mask.dtype;
}

void AttentionPlan::check_alibi(const TensorView& slopes, const TensorView& query, std::int64_t batch) {
  const Argument argument{operation_, "alibi_slopes"};
  check_device(slopes, query.device, argument);
  const DType dtype = job_.dtype == DType::float64 ? DType::float64 : DType::float32;
  if (slopes.dtype != DType::float32 && slopes.dtype != DType::float64) {
    refuse_type(argument, "float32 or float64", name_of(slopes.dtype), std::string("Convert it to ") + name_of(dtype));
  }
  if (slopes.ndim == 1) {
    check_shape(slopes, {job_.heads}, argument);
    job_.alibi = {slopes.data, 0, stride_of(slopes, 0), 0, 0};
  } else {
    check_shape(slopes, {batch, job_.heads}, argument);
    job_.alibi = {slopes.data, stride_of(slopes, 0), stride_of(slopes, 1), 0, 0};
  }
  job_.alibi_dtype = slopes.dtype;
}

void AttentionPlan::forward(const Stream& stream) const { backend_->attention_forward(job_, stream); }

}  // namespace fusestep
