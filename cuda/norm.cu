// The norm of a list of gradients: the CPU's partition, lanes and order (cpp/math/norm.h), so the CPU's bits. A warp
// takes a slice, its threads are the lanes.
#include "cuda/combine.h"
#include "cuda/launch.h"
#include "cuda/step.h"
#include "cuda/values.h"
#include "jobs/slices.h"

namespace fusestep::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kLoadsAhead = 8;  // in flight for each thread while it adds
static_assert(kNormLanes == 32, "a lane is a thread of a warp");

// Adds a lane's elements of flat memory.
template <class Norm, class G>
__device__ __forceinline__ void add_flat(const G* grad, std::int64_t count, int lane, double& total) {
  std::int64_t i = lane;
  for (; i + (kLoadsAhead - 1) * kNormLanes < count; i += kLoadsAhead * kNormLanes) {
    G ahead[kLoadsAhead];
    for (int k = 0; k < kLoadsAhead; ++k) ahead[k] = grad[i + k * kNormLanes];
    for (int k = 0; k < kLoadsAhead; ++k) total = Norm::accumulate(total, widened<double>(ahead[k]));
  }
  for (; i < count; i += kNormLanes) total = Norm::accumulate(total, widened<double>(grad[i]));
}

// The CPU gathers strided elements into a buffer, and lanes count from its start: so they do here.
constexpr std::int64_t kStridedRun = 256;

template <class Norm, class G>
__device__ __forceinline__ double add_strided(const G* grad, const StridedLayout& layout, std::int64_t first,
                                              std::int64_t last, int lane, double total) {
  const std::int64_t row = layout.shape[layout.ndim - 1];
  const std::int64_t step = layout.strides[0][layout.ndim - 1];
  while (first < last) {
    std::int64_t run = row - first % row;
    run = run < kStridedRun ? run : kStridedRun;
    run = run < last - first ? run : last - first;
    const G* from = grad + offset_of(layout, 0, first);
    for (std::int64_t i = lane; i < run; i += kNormLanes)
      total = Norm::accumulate(total, widened<double>(from[i * step]));
    first += run;
  }
  return total;
}

// kStrided: some tensors are. The divisions of their indices would take registers from the loop over flat memory.
template <class Norm, bool kStrided>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) norm_slices(const __grid_constant__ NormArguments arguments) {
  const std::int64_t slice = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t begin = slice * kSliceElements;
  if (begin >= arguments.elements.numel) return;  // the whole warp
  const std::int64_t end =
      begin + kSliceElements < arguments.elements.numel ? begin + kSliceElements : arguments.elements.numel;
  double total = 0;
  for_each_piece(
      arguments.elements, begin, end, [&](const GradTensorOnDevice& tensor, std::int64_t first, std::int64_t last) {
        with_dtype(tensor.dtype, tensor.data, [&](const auto* grad) {
          if (kStrided && tensor.layout >= 0) {
            total = add_strided<Norm>(grad, arguments.elements.layouts[tensor.layout], first, last, lane, total);
          } else {
            add_flat<Norm>(grad + first, last - first, lane, total);
          }
        });
      });
  for (int half = kNormLanes / 2; half > 0; half /= 2) {
    total = Norm::combine(total, __shfl_down_sync(kWholeWarp, total, static_cast<unsigned>(half)));
  }
  if (lane == 0) arguments.partial[slice] = total;
}

template <class Norm>
__global__ void __launch_bounds__(kCombineThreads) combine(const __grid_constant__ CombineArguments arguments) {
  __shared__ CombineMemory memory;
  const double total = combine_in_block<Norm>(arguments.partial, arguments.slices, memory);
  if (threadIdx.x == 0) *arguments.total = total;
}

}  // namespace

void launch_norm(NormKind kind, const NormArguments& arguments, cudaStream_t stream) {
  const std::int64_t blocks = (slices(arguments.elements.numel) + kWarpsPerBlock - 1) / kWarpsPerBlock;
  with_norm(kind, [&]<class Norm>(Norm) {
    launch("norm_slices", arguments.elements.layouts != nullptr ? norm_slices<Norm, true> : norm_slices<Norm, false>,
           blocks, 32 * kWarpsPerBlock, stream, arguments);
  });
}

void launch_combine(NormKind kind, const CombineArguments& arguments, cudaStream_t stream) {
  with_norm(kind, [&]<class Norm>(Norm) { launch("combine", combine<Norm>, 1, kCombineThreads, stream, arguments); });
}

}  // namespace fusestep::cuda
