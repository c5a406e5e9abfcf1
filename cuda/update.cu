// The update of every optimizer. Compiled once for each pair of dtypes, as the CPU's kernels are for each instruction
// set: FUSESTEP_PAIR is f32_f32, f32_bf16, f32_f16 or f64_f64 (CMakeLists.txt).
#include "cuda/launch.h"
#include "cuda/step.h"
#include "cuda/values.h"

namespace fusestep::cuda {
namespace {

namespace pair {
struct f32_f32 {
  using T = float;
  using G = float;
};
struct f32_bf16 {
  using T = float;
  using G = BFloat16;
};
struct f32_f16 {
  using T = float;
  using G = Float16;
};
struct f64_f64 {
  using T = double;
  using G = double;
};
}  // namespace pair

using T = pair::FUSESTEP_PAIR::T;
using G = pair::FUSESTEP_PAIR::G;

template <class Update>
using CoefficientsOf = typename Update::template Coefficients<T>;

// One element, in place.
template <class Update>
__device__ __forceinline__ void update_element(const CoefficientsOf<Update>& c, const GradTransform<T>& transform,
                                               T& param, G grad, T* state) {
  Update::apply(c, param, transform(widened<T>(grad)), state);
}

template <class Update>
__device__ __forceinline__ void update_strided(const CoefficientsOf<Update>& c, const GradTransform<T>& transform,
                                               const UpdateTensorOnDevice& tensor, const StridedLayout& layout,
                                               std::int64_t index) {
  T* param = static_cast<T*>(tensor.operand[0]) + offset_of(layout, 0, index);
  const G grad = static_cast<const G*>(tensor.operand[1])[offset_of(layout, 1, index)];
  T* place[kMaxStates];
  T state[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) {
    if (!uses(Update::kStates, k)) continue;
    place[k] = static_cast<T*>(tensor.operand[2 + k]) + offset_of(layout, 2 + k, index);
    state[k] = *place[k];
  }
  update_element<Update>(c, transform, *param, grad, state);
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) *place[k] = state[k];
  }
}

// kPack neighbours of a flat tensor.
template <class Update, int kPack>
__device__ __forceinline__ void update_pack(const CoefficientsOf<Update>& c, const GradTransform<T>& transform,
                                            const UpdateTensorOnDevice& tensor, std::int64_t index) {
  T* const param_at = static_cast<T*>(tensor.operand[0]) + index;
  auto param = pack_at<T, kPack>(param_at);
  const auto grad = pack_at<G, kPack>(static_cast<const G*>(tensor.operand[1]) + index);
  Pack<T, kPack> states[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) states[k] = pack_at<T, kPack>(static_cast<T*>(tensor.operand[2 + k]) + index);
  }
  for (int i = 0; i < kPack; ++i) {
    T state[kMaxStates];
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) state[k] = states[k].value[i];
    }
    update_element<Update>(c, transform, param.value[i], grad.value[i], state);
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) states[k].value[i] = state[k];
    }
  }
  pack_at<T, kPack>(param_at) = param;
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) pack_at<T, kPack>(static_cast<T*>(tensor.operand[2 + k]) + index) = states[k];
  }
}

// kStrided: some tensors are. The divisions of their indices would take registers from the loop over flat memory.
template <class Update, bool kStrided>
__global__ void __launch_bounds__(kChunkThreads, kStrided || sizeof(T) == 8 ? 1 : 4)
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
        const CoefficientsOf<Update> c =
            *reinterpret_cast<const CoefficientsOf<Update>*>(arguments.coefficients + tensor.coefficients);
        if (kStrided && tensor.layout >= 0) {
          const StridedLayout& layout = arguments.elements.layouts[tensor.layout];
          for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
            update_strided<Update>(c, transform, tensor, layout, i);
          }
          return;
        }
        constexpr int kPack = kPackOf<T>;
        bool aligned = is_aligned<T, kPack>(static_cast<const T*>(tensor.operand[0])) &&
                       is_aligned<G, kPack>(static_cast<const G*>(tensor.operand[1]));
        for (int k = 0; k < kMaxStates; ++k) {
          if (uses(Update::kStates, k)) {
            aligned = aligned && is_aligned<T, kPack>(static_cast<const T*>(tensor.operand[2 + k]));
          }
        }
        share_out<kPack>(
            aligned, first, last, [&](std::int64_t i) { update_pack<Update, kPack>(c, transform, tensor, i); },
            [&](std::int64_t i) { update_pack<Update, 1>(c, transform, tensor, i); });
      });
}

template <class... Updates>
void launch_variant(TypeList<Updates...>, int variant, const UpdateArguments& arguments, cudaStream_t stream) {
  using Kernel = void (*)(UpdateArguments);
  constexpr Kernel flat[] = {update<Updates, false>...};
  constexpr Kernel strided[] = {update<Updates, true>...};
  const bool all_flat = arguments.elements.layouts == nullptr;
  launch("update", (all_flat ? flat : strided)[variant], chunks(arguments.elements.numel), kChunkThreads, stream,
         arguments);
}

}  // namespace

#define FUSESTEP_JOIN_(a, b) a##b
#define FUSESTEP_JOIN(a, b) FUSESTEP_JOIN_(a, b)

void FUSESTEP_JOIN(launch_update_, FUSESTEP_PAIR)(int variant, const UpdateArguments& arguments, cudaStream_t stream) {
  launch_variant(UpdateVariants{}, variant, arguments, stream);
}

}  // namespace fusestep::cuda
