// The small kernel between the norm and the update of a step that the host does not look into: it adds up the norm,
// decides about clipping and skipping, counts the step, and prepares each parameter's coefficients from its own count.
#include "cuda/combine.h"
#include "cuda/launch.h"
#include "cuda/step.h"

namespace fusestep::cuda {
namespace {

__device__ __forceinline__ double read(const Scalar& scalar) {
  return scalar.dtype == DType::float32 ? static_cast<double>(*static_cast<const float*>(scalar.data))
                                        : *static_cast<const double*>(scalar.data);
}

__device__ __forceinline__ void write(const Scalar& scalar, double value) {
  if (scalar.dtype == DType::float32) {
    *static_cast<float*>(scalar.data) = static_cast<float>(value);
  } else {
    *static_cast<double*>(scalar.data) = value;
  }
}

__device__ __forceinline__ double norm_in_block(const DecideArguments& arguments, CombineMemory& memory) {
  switch (arguments.norm_kind) {
    case NormKind::one:
      return NormOne::finish(combine_in_block<NormOne>(arguments.partial, arguments.slices, memory));
    case NormKind::two:
      return NormTwo::finish(combine_in_block<NormTwo>(arguments.partial, arguments.slices, memory));
    default:
      return NormInf::finish(combine_in_block<NormInf>(arguments.partial, arguments.slices, memory));
  }
}

template <class O>
__global__ void __launch_bounds__(kCombineThreads) decide(const __grid_constant__ DecideArguments arguments) {
  __shared__ CombineMemory memory;
  __shared__ bool applied;
  const bool with_norm = arguments.partial != nullptr;
  const double scaled_norm = with_norm ? norm_in_block(arguments, memory) : 0;
  if (threadIdx.x == 0) {
    const double grad_scale =
        arguments.grad_scale_on_device.data != nullptr ? read(arguments.grad_scale_on_device) : arguments.grad_scale;
    const double norm = scaled_norm / grad_scale;
    const bool finite = norm - norm == 0;
    const bool found_inf = arguments.found_inf.data != nullptr && read(arguments.found_inf) != 0;
    applied = !found_inf && (finite || !with_norm || !arguments.skip_nonfinite);
    *arguments.decision = {norm, arguments.rule.transform(norm, grad_scale), applied};
    if (with_norm && arguments.norm.data != nullptr) write(arguments.norm, norm);
    if (!applied && arguments.skipped.data != nullptr) write(arguments.skipped, read(arguments.skipped) + 1);
  }
  __syncthreads();
  if (!applied) return;
  for (std::int64_t i = threadIdx.x; i < arguments.num_prepared; i += blockDim.x) {
    const PreparedOnDevice& tensor = arguments.prepared[i];
    const double step = read(tensor.count) + 1;
    write(tensor.count, step);
    typename O::Options options = reinterpret_cast<const typename O::Options*>(arguments.options)[tensor.group];
    if (arguments.lr[tensor.group].data != nullptr) options.lr = read(arguments.lr[tensor.group]);
    unsigned char* to = arguments.coefficients + tensor.coefficients;
    if (tensor.dtype == DType::float32) {
      const auto coefficients = O::template prepare<float>(options, step);
      memcpy(to, &coefficients, sizeof coefficients);
    } else {
      const auto coefficients = O::template prepare<double>(options, step);
      memcpy(to, &coefficients, sizeof coefficients);
    }
  }
}

template <class... Os>
void launch_optimizer(TypeList<Os...>, int optimizer, const DecideArguments& arguments, cudaStream_t stream) {
  using Kernel = void (*)(DecideArguments);
  constexpr Kernel kernels[] = {decide<Os>...};
  launch("decide", kernels[optimizer], 1, kCombineThreads, stream, arguments);
}

}  // namespace

void launch_decide(int optimizer, const DecideArguments& arguments, cudaStream_t stream) {
  launch_optimizer(Optimizers{}, optimizer, arguments, stream);
}

}  // namespace fusestep::cuda
