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
void check_offsets(const TensorView& view, const IntegerArray& offsets, std::int64_t total, const Argument& argument) {
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
  job_.dropout =
      dropout_rule(options.dropout_p, checked_seed(options.seed, query.device, {operation_, "seed"}), options.offset);

  add_lengths(query, key, options);
  if (options.mask) add_mask(*options.mask, query, key);
  if (options.alibi_slopes) check_alibi(*options.alibi_slopes, query, job_.layout.batch);
}

void AttentionPlan::add_results(const TensorView& out, const TensorView* lse) {
  const Argument out_argument{operation_, "out"};
  check_dtype(out, job_.dtype, out_argument);
  check_device(out, device_, out_argument);
  const auto& [batch, heads, queries, value_dim] = out_shape_;
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

void AttentionPlan::add_lengths(const TensorView& query, const TensorView& key, const AttentionOptions& options) {
  if (packed_ && (options.cu_seqlens_q->ndim != 1 || options.cu_seqlens_q->numel < 1)) {
    refuse_value({operation_, "cu_seqlens_q"}, "N + 1 offsets of N sequences, shape (N + 1,)",
                 "shape " + describe_shape(*options.cu_seqlens_q));
  }
  AttentionLayout& layout = job_.layout;
  layout = {.causal = options.causal,
            .window_left = options.window_left,
            .window_right = options.window_right,
            .packed = packed_,
            .batch = packed_ ? options.cu_seqlens_q->numel - 1 : query.shape[0],
            .queries = query.shape[2],
            .keys = key.shape[2],
            .key_lengths = {},
            .cu_seqlens_q = {},
            .cu_seqlens_k = {}};
  int on_device = 0;
  const auto read = [&](const std::optional<TensorView>& view, std::int64_t size, const char* name) -> IntegerArray {
    if (!view) return {};
    const Argument argument{operation_, name};
    check_shape(*view, {size}, argument);
    on_device += view->device.type != kDeviceCpu ? 1 : 0;
    return integers(*view, device_, argument);
  };
  layout.cu_seqlens_q = read(options.cu_seqlens_q, layout.batch + 1, "cu_seqlens_q");
  layout.cu_seqlens_k = read(options.cu_seqlens_k, layout.batch + 1, "cu_seqlens_k");
  layout.key_lengths = read(options.key_lengths, layout.batch, "key_lengths");
  const int given = (packed_ ? 2 : 0) + (options.key_lengths ? 1 : 0);
  if (on_device != 0) {
    if (on_device != given) {
      refuse_value({operation_, packed_ ? "cu_seqlens_q" : "key_lengths"}, "all lengths and offsets on one device",
                   "some in CPU memory and some not", "Move all of them to one device.");
    }
    job_.num_sequences = layout.count();  // the host does not wait for the device to check them
    return;
  }
  if (packed_) {
    check_offsets(*options.cu_seqlens_q, layout.cu_seqlens_q, layout.queries, {operation_, "cu_seqlens_q"});
    check_offsets(*options.cu_seqlens_k, layout.cu_seqlens_k, layout.keys, {operation_, "cu_seqlens_k"});
  }
  list_sequences();
}

void AttentionPlan::list_sequences() {
  const AttentionLayout& layout = job_.layout;
  sequences_.reserve(static_cast<std::size_t>(layout.count()));
  for (std::int64_t n = 0; n < layout.count(); ++n) {
    AttentionSequence sequence = layout.sequence(n);
    if (n == layout.batch && sequence.queries == 0 && sequence.keys == 0) continue;
    if (n < layout.batch && layout.key_lengths.data != nullptr) {
      // Packed sequences may be shorter than their lengths.
      const std::int64_t length = layout.key_lengths[n];
      if (length < 0 || (!packed_ && length > sequence.keys)) {
        refuse_value({operation_, "key_lengths", n}, "0 to " + std::to_string(sequence.keys), std::to_string(length));
      }
    }
    sequence.first_block = job_.query_blocks;
    job_.query_blocks += job_.heads * ((sequence.queries + kQueryBlock - 1) / kQueryBlock);
    sequences_.push_back(sequence);
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
