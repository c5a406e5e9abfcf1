// The update of every optimizer. Compiled once for each arithmetic, as the CPU's kernels are: FUSESTEP_ARITHMETIC is
// float32 or float64 (CMakeLists.txt). The dtypes of the operands are looked up for each tensor.
#include "cuda/elements.h"
#include "cuda/launch.h"
#include "cuda/step.h"

namespace fusestep::cuda {
namespace {

namespace arithmetic {
using float32 = float;
using float64 = double;
}  // namespace arithmetic

using T = arithmetic::FUSESTEP_ARITHMETIC;

// Blocks that a multiprocessor holds at a time, at least: as many as leave registers enough for what an update keeps.
template <class Update>
constexpr int kFlatBlocks = 4;
template <bool kMomentum, bool kCentered>
constexpr int kFlatBlocks<RMSPropUpdate<kMomentum, kCentered>> = 3;

// Of the tensors that are strided, or of those that are not: the divisions of their indices would take registers from
// the loop over flat memory.
template <class Update, bool kStrided>
__global__ void __launch_bounds__(kChunkThreads, kStrided || sizeof(T) == 8 ? 1 : kFlatBlocks<Update>)
    update(const __grid_constant__ UpdateArguments arguments) {
  GradTransform<double> wide = arguments.transform;
  if (arguments.decision != nullptr) {
    if (!arguments.decision->applied) return;
    wide = arguments.decision->transform;
  }
  if (arguments.maximize) wide.scale = -wide.scale;
  const GradTransform<T> transform{static_cast<T>(wide.scale), static_cast<T>(wide.limit)};

  for_each_piece_of_chunk(
      arguments.elements, [&](const UpdateTensorOnDevice& tensor, std::int64_t first, std::int64_t last) {
        if ((tensor.layout >= 0) != kStrided) return;
        const auto& header = *reinterpret_cast<const UpdateHeader*>(arguments.coefficients + tensor.coefficients);
        const auto c = *reinterpret_cast<const CoefficientsOf<Update, T>*>(&header + 1);
        const StridedLayout* const layout = kStrided ? arguments.elements.layouts + tensor.layout : nullptr;
        const auto single = [&](std::int64_t i) {
          Elements<Update, T, 1>{tensor, layout, i, false, 1}.update(header, c, transform);
        };
        if constexpr (kStrided) {
          for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) single(i);
        } else {
          constexpr int kPack = kPackOf<T>;
          share_out<kPack>(
              packs_are_aligned<Update, kPack>(tensor) && tensor.positions.keeps_packs(kPack), first, last,
              [&](std::int64_t i) {
                Elements<Update, T, kPack>{tensor, layout, i, true, kPack}.update(header, c, transform);
              },
              single);
        }
      });
}

template <class... Updates>
void launch_variant(TypeList<Updates...>, int variant, const UpdateArguments& arguments, cudaStream_t stream) {
  using Kernel = void (*)(UpdateArguments);
  constexpr Kernel flat[] = {update<Updates, false>...};
  constexpr Kernel strided[] = {update<Updates, true>...};
  const std::int64_t blocks = chunks(arguments.elements.numel);
  launch("update", flat[variant], blocks, kChunkThreads, stream, arguments);
  if (arguments.elements.layouts == nullptr) return;
  launch("update", strided[variant], blocks, kChunkThreads, stream, arguments);
}

}  // namespace

#define FUSESTEP_JOIN_(a, b) a##b
#define FUSESTEP_JOIN(a, b) FUSESTEP_JOIN_(a, b)

void FUSESTEP_JOIN(launch_update_, FUSESTEP_ARITHMETIC)(int variant, const UpdateArguments& arguments,
                                                        cudaStream_t stream) {
  launch_variant(UpdateVariants{}, variant, arguments, stream);
}

}  // namespace fusestep::cuda
