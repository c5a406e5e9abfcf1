// Gradients rewritten in place: unscaled, clipped, clamped.
#include "cuda/launch.h"
#include "cuda/step.h"
#include "cuda/values.h"

namespace fusestep::cuda {
namespace {

template <class G, int kPack, class T>
__device__ __forceinline__ void rewrite(G* grad, const GradTransform<T>& transform) {
  auto values = pack_at<G, kPack>(grad);
  for (int i = 0; i < kPack; ++i) narrow(transform(widened<T>(values.value[i])), values.value[i]);
  pack_at<G, kPack>(grad) = values;
}

__global__ void __launch_bounds__(kChunkThreads)
    transform_chunks(const __grid_constant__ TransformArguments arguments) {
  GradTransform<double> wide = arguments.transform;
  if (arguments.decision != nullptr) {
    if (!arguments.decision->applied) return;
    wide = arguments.decision->transform;
  }
  for_each_piece_of_chunk(
      arguments.elements, [&](const GradTensorOnDevice& tensor, std::int64_t first, std::int64_t last) {
        with_dtype(tensor.dtype, tensor.data, [&]<class G>(G* grad) {
          using T = typename Wide<G>::type;
          constexpr int kPack = kPackOf<G>;
          const GradTransform<T> transform{static_cast<T>(wide.scale), static_cast<T>(wide.limit)};
          if (tensor.layout >= 0) {
            const StridedLayout& layout = arguments.elements.layouts[tensor.layout];
            for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
              rewrite<G, 1>(grad + offset_of(layout, 0, i), transform);
            }
            return;
          }
          share_out<kPack>(
              is_aligned<G, kPack>(grad), first, last, [&](std::int64_t i) { rewrite<G, kPack>(grad + i, transform); },
              [&](std::int64_t i) { rewrite<G, 1>(grad + i, transform); });
        });
      });
}

}  // namespace

void launch_transform(const TransformArguments& arguments, cudaStream_t stream) {
  launch("transform_chunks", transform_chunks, chunks(arguments.elements.numel), kChunkThreads, stream, arguments);
}

}  // namespace fusestep::cuda
