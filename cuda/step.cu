// The course of a step on a device: at most three launches for norm, clipping and update of one kind of tensors,
// whatever their number.
#include <cmath>

#include "backend/step_on_host.h"
#include "cuda/errors.h"
#include "cuda/step.h"
#include "jobs/slices.h"

namespace fusestep::cuda {

namespace {

// The scratch memory of a step: [Decision][total][partial, slices][coefficients].
struct Scratch {
  Decision* decision;
  double* total;
  double* partial;
  unsigned char* coefficients;

  Scratch(Session& session, std::int64_t slices, std::size_t coefficient_bytes) {
    constexpr std::size_t kHead = (sizeof(Decision) + sizeof(double) + 15) / 16 * 16;
    const std::size_t partial_bytes = (static_cast<std::size_t>(slices) * sizeof(double) + 15) / 16 * 16;
    unsigned char* memory = session.scratch(kHead + partial_bytes + coefficient_bytes + 16);
    decision = reinterpret_cast<Decision*>(memory);
    total = reinterpret_cast<double*>(memory + sizeof(Decision));
    partial = reinterpret_cast<double*>(memory + kHead);
    coefficients = memory + kHead + partial_bytes;
  }
};
static_assert(sizeof(Decision) % sizeof(double) == 0);

Concatenation<GradTensorOnDevice> concatenate(Session& session, const GradJob& job) {
  return concatenate(session, job.tensors, job.num_tensors);
}

Scalar scalar(const TensorView& view) {
  return {view.data, view.dtype == DType::float32 ? ScalarType::float32 : ScalarType::float64};
}

void launch_total(Session& session, const Concatenation<GradTensorOnDevice>& grads, NormKind kind, double* partial,
                  double* total) {
  launch_norm(kind, {grads, partial}, session.stream());
  launch_combine(kind, {partial, slices(grads.numel), total}, session.stream());
}

double read_total(Session& session, const Concatenation<GradTensorOnDevice>& grads, NormKind kind,
                  const Scratch& scratch) {
  if (grads.numel == 0) return 0;
  launch_total(session, grads, kind, scratch.partial, scratch.total);
  double result = 0;
  session.read_back(&result, scratch.total, sizeof result);
  return result;
}

// All that a step needs on the device. It is made before the first launch: what can fail fails with nothing changed.
struct Tables {
  Concatenation<GradTensorOnDevice> grads{};
  std::vector<Concatenation<UpdateTensorOnDevice>> batches;

  Tables(Session& session, const StepJob& job) {
    if (job.grads.numel > 0) grads = concatenate(session, job.grads);
    for (const UpdateBatch& batch : job.batches) {
      batches.push_back(
          concatenate(session, batch.tensors.data(), static_cast<std::int64_t>(batch.tensors.size()) - 1));
    }
  }
};

void launch_update(const UpdateBatch& batch, const UpdateArguments& arguments, cudaStream_t stream) {
  const auto launch_wide = batch.arithmetic == Arithmetic::float32 ? launch_update_float32 : launch_update_float64;
  (batch.in_blocks ? launch_update_8bit : launch_wide)(batch.variant, arguments, stream);
}

StepResult run_on_host(Session& session, const StepJob& job, const Tables& tables) {
  if (session.capturing()) {
    throw CudaError(std::string(job.operation) +
                    ": expected a stream that no CUDA graph captures, got one that is captured. The graph would repeat "
                    "this step's number and decisions: pass capturable=True.");
  }
  const Scratch scratch(session, slices(job.grads.numel), 0);
  const auto* coefficients = static_cast<const unsigned char*>(session.table(job.coefficients));
  std::size_t next = 0;
  return step_on_host(
      job, [&] { return read_total(session, tables.grads, job.clipping.norm_kind, scratch); },
      [&](const UpdateBatch& batch, GradTransform<double> transform) {
        launch_update(batch, {tables.batches[next++], coefficients, nullptr, transform, batch.maximize},
                      session.stream());
      },
      [&](GradTransform<double> transform) { launch_transform({tables.grads, nullptr, transform}, session.stream()); });
}

StepResult run_deferred(Session& session, const StepJob& job, const Tables& tables) {
  const DeferredStep& deferred = *job.deferred;
  const Clipping& clipping = job.clipping;
  const Scratch scratch(session, slices(job.grads.numel), job.coefficients.size());

  std::vector<PreparedOnDevice> prepared;
  prepared.reserve(deferred.tensors.size());
  for (const PreparedTensor& tensor : deferred.tensors) {
    prepared.push_back({scalar(tensor.count), tensor.group, tensor.arithmetic, tensor.seed, tensor.coefficients});
  }
  std::vector<Scalar> lr;
  for (const TensorView& view : deferred.lr) lr.push_back(scalar(view));
  Bytes table;
  const std::size_t prepared_at = append(table, prepared.data(), prepared.size());
  const std::size_t lr_at = append(table, lr.data(), lr.size());
  const void* device = session.table(table);
  const void* options = session.table(deferred.options);  // apart: it changes with the rate, the rest does not

  DecideArguments decide{};
  decide.norm_kind = clipping.norm_kind;
  if (clipping.needs_norm() && job.totals.data != nullptr) {
    decide.partial = static_cast<const double*>(job.totals.data);
    decide.slices = job.totals.numel;
  } else if (clipping.needs_norm()) {
    launch_norm(clipping.norm_kind, {tables.grads, scratch.partial}, session.stream());
    decide.partial = scratch.partial;
    decide.slices = slices(job.grads.numel);
  }
  decide.rule = clipping.rule();
  decide.skip_nonfinite = clipping.on_nonfinite == OnNonfinite::skip;
  decide.grad_scale = clipping.grad_scale;
  decide.grad_scale_on_device = scalar(deferred.grad_scale);
  decide.found_inf = scalar(deferred.found_inf);
  decide.norm = scalar(deferred.norm);
  decide.skipped = scalar(deferred.skipped);
  decide.decision = scratch.decision;
  decide.finished = session.counter();
  decide.prepared = at<PreparedOnDevice>(device, prepared_at);
  decide.num_prepared = static_cast<std::int64_t>(prepared.size());
  decide.options = static_cast<const unsigned char*>(options);
  decide.lr = at<Scalar>(device, lr_at);
  decide.coefficients = scratch.coefficients;
  launch_decide(deferred.optimizer, decide, session.stream());

  for (std::size_t i = 0; i < job.batches.size(); ++i) {
    launch_update(job.batches[i],
                  {tables.batches[i], scratch.coefficients, scratch.decision, {}, job.batches[i].maximize},
                  session.stream());
  }
  if (clipping.rewrite_grads) launch_transform({tables.grads, scratch.decision, {}}, session.stream());
  return {std::nullopt, true};
}

}  // namespace

StepResult run_step(const StepJob& job, const Stream& stream) {
  Session session(stream);
  const Tables tables(session, job);
  const StepResult result = job.deferred ? run_deferred(session, job, tables) : run_on_host(session, job, tables);
  session.finish();
  return result;
}

std::optional<double> run_total(const GradJob& job, NormKind kind, const TensorView& out, const Stream& stream) {
  Session session(stream);
  const Scratch scratch(session, slices(job.numel), 0);
  const Concatenation<GradTensorOnDevice> grads =
      job.numel > 0 ? concatenate(session, job) : Concatenation<GradTensorOnDevice>{};
  std::optional<double> total;
  if (out.data != nullptr) {
    launch_total(session, grads, kind, scratch.partial, static_cast<double*>(out.data));
  } else {
    total = read_total(session, grads, kind, scratch);
  }
  session.finish();
  return total;
}

void run_transform(const GradJob& job, GradTransform<double> transform, const Stream& stream) {
  if (job.numel == 0) return;
  Session session(stream);
  launch_transform({concatenate(session, job), nullptr, transform}, session.stream());
  session.finish();
}

}  // namespace fusestep::cuda
