// The update of every optimizer. Compiled once for each arithmetic, as the CPU's kernels are: FUSESTEP_ARITHMETIC is
// float32 or float64 (CMakeLists.txt). The dtypes of the operands are looked up for each tensor.
#include "cuda/launch.h"
#include "cuda/step.h"
#include "cuda/values.h"
#include "math/rounding.h"

namespace fusestep::cuda {
namespace {

namespace arithmetic {
using float32 = float;
using float64 = double;
}  // namespace arithmetic

using T = arithmetic::FUSESTEP_ARITHMETIC;

template <class Update>
using CoefficientsOf = typename Update::template Coefficients<T>;

// kCount elements of a tensor, each at the offset that at(i) gives; at(0) is that of neighbours where `packed`.
template <int kCount, class S, class At>
__device__ __forceinline__ void read_elements(T (&to)[kCount], const S* from, bool packed, const At& at) {
  if (packed) {
    const auto pack = pack_at<S, kCount>(from + at(0));
    for (int i = 0; i < kCount; ++i) to[i] = widened<T>(pack.value[i]);
  } else {
    for (int i = 0; i < kCount; ++i) to[i] = widened<T>(from[at(i)]);
  }
}

template <int kCount, class S, class At, class Narrow>
__device__ __forceinline__ void write_elements(S* to, bool packed, const At& at, const Narrow& narrowed_element) {
  S values[kCount];
  for (int i = 0; i < kCount; ++i) values[i] = narrowed_element(i);
  if constexpr (kCount > 1) {
    if (packed) return store_neighbours(to + at(0), values);
  }
  for (int i = 0; i < kCount; ++i) to[at(i)] = values[i];
}

// kCount elements of one parameter: neighbours of flat memory (`packed`), or one element of any layout.
template <class Update, int kCount>
struct Elements {
  const UpdateTensorOnDevice& tensor;
  const StridedLayout* layout;  // nullptr: flat
  std::int64_t first;           // in the order of the layout
  bool packed;

  __device__ __forceinline__ std::int64_t offset(int operand, int i) const {
    return layout != nullptr ? offset_of(*layout, operand, first + i) : first + i;
  }

  __device__ __forceinline__ void load(int operand, T (&to)[kCount]) const {
    const auto at = [&](int i) { return offset(operand, i); };
    void* const data = tensor.operand[operand];
    if constexpr (sizeof(T) == 8) {
      read_elements(to, static_cast<const T*>(data), packed, at);
    } else {
      switch (tensor.dtype[operand]) {
        case DType::float32:
          return read_elements(to, static_cast<const float*>(data), packed, at);
        case DType::bfloat16:
          return read_elements(to, static_cast<const BFloat16*>(data), packed, at);
        default:
          return read_elements(to, static_cast<const Float16*>(data), packed, at);
      }
    }
  }

  // numbers: the 16 random bits of each element, where the rounding is stochastic.
  __device__ __forceinline__ void store(int operand, const T (&from)[kCount],
                                        const std::uint32_t (&numbers)[kCount]) const {
    const auto at = [&](int i) { return offset(operand, i); };
    void* const data = tensor.operand[operand];
    if (sizeof(T) == 8 || tensor.dtype[operand] == DType::float32) {
      write_elements<kCount>(static_cast<T*>(data), packed, at, [&](int i) { return from[i]; });
      return;
    }
    if constexpr (sizeof(T) == 4) {
      const bool stochastic = tensor.rounding == Rounding::stochastic;
      if (tensor.dtype[operand] == DType::bfloat16) {
        write_elements<kCount>(static_cast<BFloat16*>(data), packed, at, [&](int i) {
          return stochastic ? to_bfloat16_stochastic(from[i], numbers[i]) : to_bfloat16(from[i]);
        });
      } else {
        write_elements<kCount>(static_cast<Float16*>(data), packed, at, [&](int i) {
          return stochastic ? to_float16_stochastic(from[i], numbers[i]) : to_float16(from[i]);
        });
      }
    }
  }

  // The lower terms of parameters that are sums of two 16-bit floats, from the values that they stand for.
  __device__ __forceinline__ void store_compensation(const T (&value)[kCount]) const {
    if constexpr (sizeof(T) == 4) {
      const auto at = [&](int i) { return offset(kCompanion, i); };
      void* const data = tensor.operand[kCompanion];
      if (tensor.dtype[kCompanion] == DType::bfloat16) {
        write_elements<kCount>(static_cast<BFloat16*>(data), packed, at,
                               [&](int i) { return split<BFloat16>(value[i]).low; });
      } else {
        write_elements<kCount>(static_cast<Float16*>(data), packed, at,
                               [&](int i) { return split<Float16>(value[i]).low; });
      }
    }
  }

  __device__ __forceinline__ void draw(const UpdateHeader& header, std::uint32_t (&numbers)[kCount]) const {
    const RoundingDraw draw{header.seed, tensor.parameter, header.step};
    std::int64_t group = -1;
    PhiloxWords<std::uint32_t> words{};
    for (int i = 0; i < kCount; ++i) {
      const std::int64_t position = tensor.positions.of(first + i);
      if (position / kRoundingGroup != group) {
        group = position / kRoundingGroup;
        words = rounding_words<std::uint32_t>(draw, static_cast<std::uint32_t>(group),
                                              static_cast<std::uint32_t>(static_cast<std::uint64_t>(group) >> 32));
      }
      // Not by an index that only the run knows: the words would move to local memory.
      const int n = static_cast<int>(position % kRoundingGroup);
      const std::uint32_t lower = (n & 2) != 0 ? words.word[1] : words.word[0];
      const std::uint32_t upper = (n & 2) != 0 ? words.word[3] : words.word[2];
      numbers[i] = ((n & 4) != 0 ? upper : lower) >> (n % 2 * 16) & 0xffffu;
    }
  }

  __device__ __forceinline__ void update(const UpdateHeader& header, const CoefficientsOf<Update>& c,
                                         const GradTransform<T>& transform) const {
    const int arithmetic_param = tensor.rounding == Rounding::master ? kCompanion : 0;
    T param[kCount];
    T grad[kCount];
    T state[kMaxStates][kCount];
    load(arithmetic_param, param);
    if (tensor.rounding == Rounding::kahan) {
      T low[kCount];
      load(kCompanion, low);
#pragma unroll
      for (int i = 0; i < kCount; ++i) param[i] += low[i];
    }
    load(1, grad);
#pragma unroll
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) load(kFirstState + k, state[k]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      T one[kMaxStates];
#pragma unroll
      for (int k = 0; k < kMaxStates; ++k) {
        if (uses(Update::kStates, k)) one[k] = state[k][i];
      }
      Update::apply(c, param[i], transform(grad[i]), one);
#pragma unroll
      for (int k = 0; k < kMaxStates; ++k) {
        if (uses(Update::kStates, k)) state[k][i] = one[k];
      }
    }
    std::uint32_t numbers[kCount] = {};
    if (tensor.rounding == Rounding::stochastic) draw(header, numbers);
    store(0, param, numbers);
    if (tensor.rounding == Rounding::master) store(kCompanion, param, numbers);
    if (tensor.rounding == Rounding::kahan) store_compensation(param);
#pragma unroll
    for (int k = 0; k < kMaxStates; ++k) {
      if (!uses(Update::kStates, k)) continue;
      std::uint32_t rotated[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) rotated[i] = rotate_number(numbers[i], k);
      store(kFirstState + k, state[k], rotated);
    }
  }
};

// Whether kCount neighbours of each operand can be read by one instruction.
template <class Update, int kCount>
__device__ __forceinline__ bool packs_are_aligned(const UpdateTensorOnDevice& tensor) {
  bool aligned = true;
  for (int k = 0; k < kMaxOperands; ++k) {
    const bool used = k < kFirstState || k == kCompanion || uses(Update::kStates, k - kFirstState);
    if (!used) continue;
    // nullptr, of a companion that there is not, is aligned.
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.operand[k]);
    aligned = aligned && address % static_cast<std::uintptr_t>(size_of(tensor.dtype[k]) * kCount) == 0;
  }
  return aligned;
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
        const auto& header = *reinterpret_cast<const UpdateHeader*>(arguments.coefficients + tensor.coefficients);
        const CoefficientsOf<Update> c = *reinterpret_cast<const CoefficientsOf<Update>*>(&header + 1);
        if (kStrided && tensor.layout >= 0) {
          const StridedLayout& layout = arguments.elements.layouts[tensor.layout];
          for (std::int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
            Elements<Update, 1>{tensor, &layout, i, false}.update(header, c, transform);
          }
          return;
        }
        constexpr int kPack = kPackOf<T>;
        share_out<kPack>(
            packs_are_aligned<Update, kPack>(tensor), first, last,
            [&](std::int64_t i) { Elements<Update, kPack>{tensor, nullptr, i, true}.update(header, c, transform); },
            [&](std::int64_t i) { Elements<Update, 1>{tensor, nullptr, i, false}.update(header, c, transform); });
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

void FUSESTEP_JOIN(launch_update_, FUSESTEP_ARITHMETIC)(int variant, const UpdateArguments& arguments,
                                                        cudaStream_t stream) {
  launch_variant(UpdateVariants{}, variant, arguments, stream);
}

}  // namespace fusestep::cuda
