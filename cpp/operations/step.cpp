#include "operations/step.h"

#include <cmath>
#include <string>

#include "backend/dispatch.h"
#include "tensors/check_view.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

// What goes together: everything float64, or any mixture of float32, bfloat16 and float16.
void check_same_arithmetic(const TensorView& view, DType param, const Argument& argument) {
  if (arithmetic_of(view.dtype) == arithmetic_of(param)) return;
  const std::string expected = arithmetic_of(param) == Arithmetic::float64
                                   ? std::string("float64 as its parameter is")
                                   : std::string("float32, bfloat16 or float16 as its parameter is ") + name_of(param);
  refuse_type(argument, expected, name_of(view.dtype));
}

}  // namespace

NonfiniteNorm::NonfiniteNorm(const char* operation, double norm)
    : std::runtime_error(std::string(operation) + ": grads: expected a finite norm, got " +
                         (std::isnan(norm) ? "nan" : "inf") +
                         ". Nothing was changed: look for the loss that overflowed, or leave such steps out with "
                         "on_nonfinite=\"skip\".") {}

void StepPlan::check(const StepTensor& tensor, Rounding rounding, const char* const* state_names, StateSet states,
                     std::int64_t group, std::int64_t index) {
  const TensorView& param = tensor.param;
  const Argument param_argument{operation_, "params", index, group};
  const Backend& backend = backend_for(param.device, param_argument);
  if (backend_ == nullptr) {
    backend_ = &backend;
    device_ = param.device;
    if (job_.deferred && !backend.defers) {
      refuse_value({operation_, "capturable"}, "parameters on a CUDA device", "some in CPU memory",
                   "Leave it False: there is no graph to capture on the CPU.");
    }
  } else if (param.device != device_) {
    refuse_value(param_argument, "the device of the first parameter", "another one", "Make one step for each device.");
  }
  check_writable(param, param_argument);
  overlaps_.writes(param, param_argument);

  const Argument grad_argument{operation_, "grads", index, group};
  check_like(tensor.grad, param, grad_argument);
  check_same_arithmetic(tensor.grad, param.dtype, grad_argument);
  if (job_.clipping.rewrite_grads) {
    check_writable(tensor.grad, grad_argument);
    overlaps_.writes(tensor.grad, grad_argument);
  } else {
    overlaps_.reads(tensor.grad, grad_argument);
  }

  for (int k = 0; k < kMaxStates; ++k) {
    if (!uses(states, k)) continue;
    const TensorView& state = tensor.states[k];
    const Argument argument{operation_, state_names[k], index, group};
    check_like(state, param, argument);
    check_same_arithmetic(state, param.dtype, argument);
    check_writable(state, argument);
    overlaps_.writes(state, argument);
  }
  check_companion(tensor, rounding, group, index);

  if (tensor.step_count.data != nullptr) {
    const Argument argument{operation_, "step", index, group};
    check_writable(tensor.step_count, argument);
    overlaps_.writes(tensor.step_count, argument);
    if (job_.deferred) {
      if (tensor.step_count.device != param.device) {
        refuse_value(argument, "a count on the device of its parameter", "one on another device",
                     "capturable=True keeps it there.");
      }
    } else {
      job_.step_counts.push_back(tensor.step_count);
    }
  } else if (job_.deferred) {
    refuse_value({operation_, "step", -1, group}, "a tensor for each count on the device", "numbers");
  }
}

// States in 8 bits: blocks of neighbours in the order in which the update visits the parameter.
void StepPlan::check_codes(const StepTensor& tensor, Rounding rounding, const char* const* state_names, StateSet states,
                           StateSet differences, std::int64_t group, std::int64_t index) {
  const TensorView& param = tensor.param;
  for (int k = 0; k < kMaxStates; ++k) {
    const TensorView& state = tensor.states[k];
    if (!uses(states, k) || state.dtype != DType::uint8) continue;
    const Argument argument{operation_, state_names[k], index, group};
    if (uses(differences, k)) {
      refuse_type(argument, "float32, bfloat16 or float16 with centered=True", "uint8",
                  "The variance is the small difference of two states, which 8 bits do not hold.");
    }
    if (!is_dense(param) || !same_strides(state, param)) {
      refuse_value(argument, "a uint8 array that lies in memory as its parameter does, both without gaps",
                   "other strides");
    }
    if (rounding == Rounding::stochastic && !is_contiguous(param)) {
      refuse_value(argument, "a C-contiguous parameter beside a uint8 array where rounding is \"stochastic\"",
                   "another layout");
    }
    const TensorView& absmax = tensor.absmax[k];
    const std::int64_t blocks = moment_blocks(param.numel);
    if (absmax.dtype != DType::float32) refuse_type(argument, "absmax of float32", name_of(absmax.dtype));
    if (absmax.ndim != 1 || absmax.numel != blocks || !is_contiguous(absmax)) {
      refuse_value(argument,
                   "contiguous absmax of shape (" + std::to_string(blocks) + ",), one for each " +
                       std::to_string(kMomentBlock) + " elements",
                   "shape " + describe_shape(absmax));
    }
    if (absmax.device != param.device) refuse_value(argument, "absmax on the device of its parameter", "another one");
    check_writable(absmax, argument);
    overlaps_.writes(absmax, argument);
  }
}

void StepPlan::check_companion(const StepTensor& tensor, Rounding rounding, std::int64_t group, std::int64_t index) {
  if (rounding == Rounding::nearest) return;
  const TensorView& param = tensor.param;
  if (!is_half(param.dtype)) {
    refuse_type({operation_, "params", index, group}, "bfloat16 or float16 where rounding or master_weights is given",
                name_of(param.dtype), "Wider parameters are not rounded to 16 bits: give them a group of their own.");
  }
  if (rounding == Rounding::stochastic) return;
  const bool kahan = rounding == Rounding::kahan;
  const Argument argument{operation_, kahan ? "compensations" : "master_params", index, group};
  const DType expected = kahan ? param.dtype : DType::float32;
  check_like(tensor.companion, param, argument);
  if (tensor.companion.dtype != expected) refuse_type(argument, name_of(expected), name_of(tensor.companion.dtype));
  check_writable(tensor.companion, argument);
  overlaps_.writes(tensor.companion, argument);
}

void StepPlan::check_can_defer() {
  if (job_.clipping.on_nonfinite != OnNonfinite::raise) return;
  refuse_value({operation_, "on_nonfinite"}, "\"skip\" or \"propagate\" with capturable=True", "\"raise\"",
               "The host, which would raise, does not wait for the norm.");
}

void StepPlan::check_together() {
  overlaps_.check();
  check_totals(job_.totals, job_.deferred ? device_ : Device{kDeviceCpu, 0}, operation_);
  if (!job_.deferred || backend_ == nullptr) return;
  const DeferredStep& deferred = *job_.deferred;
  const auto check_scalar = [&](const TensorView& view, const char* name, std::int64_t group) {
    const Argument argument{operation_, name, -1, group};
    if (view.data == nullptr) return;
    if (view.numel != 1) refuse_value(argument, "one element", "shape " + describe_shape(view));
    if (view.dtype != DType::float32 && view.dtype != DType::float64) {
      refuse_type(argument, "float32 or float64", name_of(view.dtype));
    }
    if (view.device != device_) refuse_value(argument, "the device of the parameters", "another one");
  };
  check_scalar(deferred.grad_scale, "grad_scale", -1);
  check_scalar(deferred.found_inf, "found_inf", -1);
  check_scalar(deferred.norm, "norm", -1);
  check_scalar(deferred.skipped, "skipped", -1);
  for (std::size_t g = 0; g < deferred.lr.size(); ++g) {
    check_scalar(deferred.lr[g], "lr", deferred.lr.size() == 1 ? -1 : static_cast<std::int64_t>(g));
  }
}

void StepPlan::defer_coefficients(const StepTensor& tensor, std::size_t bytes, std::uint64_t seed, std::int64_t group) {
  last_coefficients_ = job_.coefficients.size();
  job_.coefficients.resize(last_coefficients_ + (bytes + 15) / 16 * 16);
  job_.deferred->tensors.push_back({tensor.step_count, static_cast<std::int32_t>(group < 0 ? 0 : group),
                                    arithmetic_of(tensor.param.dtype), seed,
                                    static_cast<std::int64_t>(last_coefficients_)});
}

bool StepPlan::reuses_coefficients(const StepTensor& tensor, const void* options) {
  const bool same =
      options == last_options_ && tensor.step == last_step_ && arithmetic_of(tensor.param.dtype) == last_arithmetic_;
  last_options_ = options;
  last_step_ = tensor.step;
  last_arithmetic_ = arithmetic_of(tensor.param.dtype);
  return same;
}

void StepPlan::push(int variant, bool maximize, Rounding rounding, const StepTensor& tensor, StateSet states,
                    std::int64_t group, std::int64_t index) {
  bool in_blocks = false;
  for (int k = 0; k < kMaxStates; ++k) {
    in_blocks = in_blocks || (uses(states, k) && tensor.states[k].dtype == DType::uint8);
  }
  UpdateBatch& batch = batch_for(variant, arithmetic_of(tensor.param.dtype), maximize, in_blocks);
  const TensorView* views[kMaxOperands] = {&tensor.param, &tensor.grad};
  int operands[kMaxOperands] = {0, 1};
  int num_views = 2;
  UpdateTensor& update = batch.tensors.back();
  update.operand[0] = tensor.param.data;
  update.operand[1] = tensor.grad.data;
  update.dtype[0] = tensor.param.dtype;
  update.dtype[1] = tensor.grad.dtype;
  for (int k = 0; k < kMaxStates; ++k) {
    if (!uses(states, k)) continue;
    update.operand[kFirstState + k] = tensor.states[k].data;
    update.dtype[kFirstState + k] = tensor.states[k].dtype;
    if (tensor.states[k].dtype == DType::uint8) {
      update.absmax[k] = static_cast<float*>(tensor.absmax[k].data);
      continue;  // it is flat, whatever the layout of the others
    }
    operands[num_views] = kFirstState + k;
    views[num_views++] = &tensor.states[k];
  }
  if (rounding == Rounding::kahan || rounding == Rounding::master) {
    update.operand[kCompanion] = tensor.companion.data;
    update.dtype[kCompanion] = tensor.companion.dtype;
    operands[num_views] = kCompanion;
    views[num_views++] = &tensor.companion;
  }
  update.rounding = rounding;
  update.parameter = tensor.number;
  update.positions = tensor.positions;
  // Stochastic rounding counts elements in C order, so that its draws do not depend on how the tensor lies in memory.
  const ElementOrder order = rounding == Rounding::stochastic ? ElementOrder::c_order : ElementOrder::memory;
  update.layout = layouts_.layout_of(views, operands, num_views, {operation_, "params", index, group}, order);
  if (in_blocks && update.layout != nullptr && !backend_->strided_8bit) {
    refuse_value({operation_, "grads", index, group},
                 "what lies in memory as its parameter does, beside states in 8 bits on CUDA", "other strides",
                 "Copy it into the strides of the parameter, or take a state_dtype of 16 bits.");
  }
  update.coefficients = static_cast<std::int64_t>(last_coefficients_);
  update.numel = tensor.param.numel;
  UpdateTensor end{};
  end.begin = update.begin + (in_blocks ? moment_blocks(update.numel) * kMomentBlock : update.numel);
  batch.tensors.push_back(end);

  const bool adds_up = job_.clipping.needs_norm() && job_.totals.data == nullptr;
  if (adds_up || job_.clipping.rewrite_grads) grads_.add(tensor.grad, {operation_, "grads", index, group});
}

UpdateBatch& StepPlan::batch_for(int variant, Arithmetic arithmetic, bool maximize, bool in_blocks) {
  for (UpdateBatch& batch : job_.batches) {
    if (batch.variant == variant && batch.arithmetic == arithmetic && batch.maximize == maximize &&
        batch.in_blocks == in_blocks) {
      return batch;
    }
  }
  job_.batches.push_back({variant, arithmetic, maximize, in_blocks, {UpdateTensor{}}});
  return job_.batches.back();
}

StepResult StepPlan::run(const Stream& stream) {
  // Without parameters there is nothing to do but to say what the norm of nothing is.
  const Backend& backend = backend_ != nullptr ? *backend_ : backend_for(stream.device, {operation_, "params"});
  if (backend_ == nullptr) job_.deferred.reset();
  job_.grads = grads_.job();
  return backend.step(job_, stream);
}

}  // namespace fusestep
