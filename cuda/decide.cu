// The small kernel between the norm and the update of a step that the host does not see: it adds up the norm, decides
// about clipping and skipping, prepares each parameter's coefficients from its own count, and counts the step.
#include "cuda/combine.h"
#include "cuda/launch.h"
#include "cuda/step.h"

namespace fusestep::cuda {
namespace {

__device__ __forceinline__ double read(const Scalar& scalar) {
  return scalar.type == ScalarType::float32 ? static_cast<double>(*static_cast<const float*>(scalar.data))
                                            : *static_cast<const double*>(scalar.data);
}

__device__ __forceinline__ void write(const Scalar& scalar, double value) {
  if (scalar.type == ScalarType::float32) {
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

// The first thread's part: what becomes of the step.
__device__ __forceinline__ void write_decision(const DecideArguments& arguments, double scaled_norm) {
  const bool with_norm = arguments.partial != nullptr;
  const double grad_scale =
      arguments.grad_scale_on_device.data != nullptr ? read(arguments.grad_scale_on_device) : arguments.grad_scale;
  const double norm = scaled_norm / grad_scale;
  const bool finite = norm - norm == 0;
  const bool found_inf = arguments.found_inf.data != nullptr && read(arguments.found_inf) != 0;
  const bool applied = !found_inf && (finite || !with_norm || !arguments.skip_nonfinite);
  *arguments.decision = {norm, arguments.rule.transform(norm, grad_scale), applied};
  if (with_norm && arguments.norm.data != nullptr) write(arguments.norm, norm);
  if (!applied && arguments.skipped.data != nullptr) write(arguments.skipped, read(arguments.skipped) + 1);
}

template <class O, class T>
__device__ __forceinline__ void write_coefficients(const typename O::Options& options, double step, unsigned char* to) {
  const auto coefficients = O::template prepare<T>(options, step);
  memcpy(to, &coefficients, sizeof coefficients);
}

template <class O>
__device__ __forceinline__ void prepare(const DecideArguments& arguments, const PreparedOnDevice& tensor) {
  const double step = read(tensor.count) + 1;
  typename O::Options options = reinterpret_cast<const typename O::Options*>(arguments.options)[tensor.group];
  if (arguments.lr[tensor.group].data != nullptr) options.lr = read(arguments.lr[tensor.group]);
  unsigned char* const to = arguments.coefficients + tensor.coefficients;
  const UpdateHeader header{tensor.seed, static_cast<std::uint32_t>(static_cast<std::int64_t>(step))};
  memcpy(to, &header, sizeof header);
  if (tensor.arithmetic == Arithmetic::float32) {
    write_coefficients<O, float>(options, step, to + sizeof header);
  } else {
    write_coefficients<O, double>(options, step, to + sizeof header);
  }
}

// The first block adds up the norm and decides. The others prepare coefficients at the same time, one parameter a
// thread. The last block to finish counts the step: only then has each count been read.
template <class O>
__global__ void __launch_bounds__(kCombineThreads) decide(const __grid_constant__ DecideArguments arguments) {
  __shared__ CombineMemory memory;
  __shared__ bool is_last;
  if (blockIdx.x == 0) {
    const double scaled_norm = arguments.partial != nullptr ? norm_in_block(arguments, memory) : 0;
    if (threadIdx.x == 0) write_decision(arguments, scaled_norm);
  } else {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x - 1) * kCombineThreads + threadIdx.x;
    if (i < arguments.num_prepared) prepare<O>(arguments, arguments.prepared[i]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(arguments.finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) *arguments.finished = 0;  // for the next step
  if (!static_cast<const volatile Decision*>(arguments.decision)->applied) return;
  for (std::int64_t i = threadIdx.x; i < arguments.num_prepared; i += blockDim.x) {
    const Scalar& count = arguments.prepared[i].count;
    write(count, read(count) + 1);
  }
}

template <class... Os>
void launch_optimizer(TypeList<Os...>, int optimizer, const DecideArguments& arguments, cudaStream_t stream) {
  using Kernel = void (*)(DecideArguments);
  constexpr Kernel kernels[] = {decide<Os>...};
  const std::int64_t blocks = 1 + (arguments.num_prepared + kCombineThreads - 1) / kCombineThreads;
  launch("decide", kernels[optimizer], blocks, kCombineThreads, stream, arguments);
}

}  // namespace

void launch_decide(int optimizer, const DecideArguments& arguments, cudaStream_t stream) {
  launch_optimizer(Optimizers{}, optimizer, arguments, stream);
}

}  // namespace fusestep::cuda
