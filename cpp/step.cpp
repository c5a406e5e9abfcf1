#include "step.h"

#include <cmath>
#include <string>

#include "check_view.h"
#include "dispatch.h"

namespace fusestep {

namespace {

bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

DTypePair pair_of(DType param, DType grad) {
  if (param == DType::float64) return DTypePair::f64_f64;
  switch (grad) {
    case DType::bfloat16:
      return DTypePair::f32_bf16;
    case DType::float16:
      return DTypePair::f32_f16;
    default:
      return DTypePair::f32_f32;
  }
}

}  // namespace

NonfiniteNorm::NonfiniteNorm(const char* operation, double norm)
    : std::runtime_error(std::string(operation) + ": grads: expected a finite norm, got " +
                         (std::isnan(norm) ? "nan" : "inf") +
                         ". Nothing was changed: look for the loss that overflowed, or leave such steps out with "
                         "on_nonfinite=\"skip\".") {}

void StepPlan::check(const StepTensor& tensor, const char* const* state_names, StateSet states, std::int64_t group,
                     std::int64_t index) {
  const TensorView& param = tensor.param;
  const Argument param_argument{operation_, "params", index, group};
  const Backend& backend = backend_for(param.device, param_argument);
  if (backend_ == nullptr) {
    backend_ = &backend;
    device_ = param.device;
  } else if (param.device != device_) {
    refuse_value(param_argument, "the device of the first parameter", "another one", "Make one step for each device.");
  }
  if (param.dtype != DType::float32 && param.dtype != DType::float64) {
    refuse_type(param_argument, "float32 or float64", name_of(param.dtype),
                "Keep a float32 copy of the parameters: 16 bits are too few to add small updates to.");
  }
  check_writable(param, param_argument);
  overlaps_.writes(param, param_argument);

  const Argument grad_argument{operation_, "grads", index, group};
  check_like(tensor.grad, param, grad_argument);
  if (tensor.grad.dtype != param.dtype && !(is_half(tensor.grad.dtype) && param.dtype == DType::float32)) {
    refuse_type(grad_argument,
                param.dtype == DType::float32 ? "float32, bfloat16 or float16 as its parameter is float32"
                                              : "float64 as its parameter is",
                name_of(tensor.grad.dtype));
  }
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
    if (state.dtype != param.dtype) {
      refuse_type(argument, std::string(name_of(param.dtype)) + " as its parameter is", name_of(state.dtype));
    }
    check_writable(state, argument);
    overlaps_.writes(state, argument);
  }

  if (tensor.step_count.data != nullptr) {
    const Argument argument{operation_, "steps", index, group};
    check_writable(tensor.step_count, argument);
    overlaps_.writes(tensor.step_count, argument);
    job_.step_counts.push_back(tensor.step_count);
  }
}

bool StepPlan::reuses_coefficients(const StepTensor& tensor, const void* options) {
  const bool same = options == last_options_ && tensor.step == last_step_ && tensor.param.dtype == last_dtype_;
  last_options_ = options;
  last_step_ = tensor.step;
  last_dtype_ = tensor.param.dtype;
  return same;
}

void StepPlan::push(int variant, bool maximize, const StepTensor& tensor, StateSet states, std::int64_t group,
                    std::int64_t index) {
  UpdateBatch& batch = batch_for(variant, pair_of(tensor.param.dtype, tensor.grad.dtype), maximize);
  const TensorView* views[kMaxOperands] = {&tensor.param, &tensor.grad};
  int operands[kMaxOperands] = {0, 1};
  int num_views = 2;
  UpdateTensor& update = batch.tensors.back();
  update.operand[0] = tensor.param.data;
  update.operand[1] = tensor.grad.data;
  for (int k = 0; k < kMaxStates; ++k) {
    if (!uses(states, k)) continue;
    update.operand[2 + k] = tensor.states[k].data;
    operands[num_views] = 2 + k;
    views[num_views++] = &tensor.states[k];
  }
  update.layout = layouts_.layout_of(views, operands, num_views, {operation_, "params", index, group});
  update.coefficients = static_cast<std::int64_t>(last_coefficients_);
  UpdateTensor end{};
  end.begin = update.begin + tensor.param.numel;
  batch.tensors.push_back(end);

  if (job_.clipping.needs_norm() || job_.clipping.rewrite_grads)
    grads_.add(tensor.grad, {operation_, "grads", index, group});
}

UpdateBatch& StepPlan::batch_for(int variant, DTypePair dtypes, bool maximize) {
  for (UpdateBatch& batch : job_.batches) {
    if (batch.variant == variant && batch.dtypes == dtypes && batch.maximize == maximize) return batch;
  }
  job_.batches.push_back({variant, dtypes, maximize, {UpdateTensor{}}});
  return job_.batches.back();
}

StepResult StepPlan::run(const Stream& stream) {
  // Without parameters there is nothing to do but to say what the norm of nothing is.
  const Backend& backend = backend_ != nullptr ? *backend_ : backend_for(stream.device, {operation_, "params"});
  job_.grads = grads_.job();
  return backend.step(job_, stream);
}

}  // namespace fusestep
