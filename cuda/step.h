// What the files of a step share.
#pragma once

#include "backend/backend.h"
#include "cuda/concatenation.h"

namespace fusestep::cuda {

// What the device makes of the norm, for the kernels that come after.
struct Decision {
  double norm;
  GradTransform<double> transform;
  bool applied;
};

struct UpdateArguments {
  Concatenation<UpdateTensorOnDevice> elements;
  const unsigned char* coefficients;
  const Decision* decision;  // nullptr: the host has decided
  GradTransform<double> transform;
  bool maximize;
};

// launch_update_<arithmetic>(variant, ...): update.cu, compiled once for each.
using LaunchUpdate = void(int variant, const UpdateArguments&, cudaStream_t);
LaunchUpdate launch_update_float32, launch_update_float64;

// Of tensors with states in 8 bits, whose arithmetic is float32: update_8bit.cu.
LaunchUpdate launch_update_8bit;

struct TransformArguments {
  Concatenation<GradTensorOnDevice> elements;
  const Decision* decision;  // nullptr: the host has decided
  GradTransform<double> transform;
};

void launch_transform(const TransformArguments&, cudaStream_t);

struct NormArguments {
  Concatenation<GradTensorOnDevice> elements;
  double* partial;  // [slices]
};

void launch_norm(NormKind kind, const NormArguments&, cudaStream_t);

// The total of all slices.
struct CombineArguments {
  const double* partial;
  std::int64_t slices;
  double* total;
};

void launch_combine(NormKind kind, const CombineArguments&, cudaStream_t);

// A 0-dim tensor on the device.
enum class ScalarType : std::uint64_t { float32, float64 };

struct Scalar {
  void* data;  // nullptr: not given
  ScalarType type;
};

struct PreparedOnDevice {
  Scalar count;
  std::int32_t group;
  Arithmetic arithmetic;
  std::uint64_t seed;
  std::int64_t coefficients;
};

struct DecideArguments {
  NormKind norm_kind;
  const double* partial;  // nullptr: the norm is not needed
  std::int64_t slices;
  ClipRule rule;
  bool skip_nonfinite;
  double grad_scale;  // where the scalar is not given
  Scalar grad_scale_on_device;
  Scalar found_inf;
  Scalar norm;     // written
  Scalar skipped;  // incremented where the step is left out
  Decision* decision;
  std::uint32_t* finished;  // blocks; 0 before and after

  const PreparedOnDevice* prepared;
  std::int64_t num_prepared;
  const unsigned char* options;  // O::Options, [group]
  const Scalar* lr;              // [group]
  unsigned char* coefficients;
};

void launch_decide(int optimizer, const DecideArguments&, cudaStream_t);

StepResult run_step(const StepJob&, const Stream&);
std::optional<double> run_total(const GradJob&, NormKind, const TensorView& out, const Stream&);
void run_transform(const GradJob&, GradTransform<double>, const Stream&);

}  // namespace fusestep::cuda
