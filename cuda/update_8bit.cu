// The update of every optimizer for tensors that have states in 8 bits (math/eight_bit.h). A warp takes a block of
// elements at a time: its lanes hold packs of neighbours, and agree on the greatest absolute value.
#include <cstdint>

#include "cuda/elements.h"
#include "cuda/launch.h"
#include "math/eight_bit.h"

namespace fusestep::cuda {
namespace {

constexpr int kPack = kPackOf<float>;
constexpr int kWarp = 32;
constexpr int kPacks = kMomentBlock / (kWarp * kPack);  // of each lane

template <class Update>
using Lane = Elements<Update, float, kPack>;

__device__ __forceinline__ std::uint32_t greatest_of_warp(std::uint32_t value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  return value;
}

// Four codes that lie together.
struct alignas(kPack) CodePack {
  std::uint8_t code[kPack];
};

__device__ __forceinline__ void read_codes(bool square, float (&to)[kPack], const std::uint8_t* codes, bool packed,
                                           int count, float scale) {
  CodePack pack{};
  if (packed) {
    pack = *reinterpret_cast<const CodePack*>(codes);
  } else {
    for (int i = 0; i < kPack; ++i) {
      if (i < count) pack.code[i] = codes[i];
    }
  }
  for (int i = 0; i < kPack; ++i) {
    const std::uint32_t code = pack.code[i] * 256u;
    const std::uint32_t half = square ? decode_moment<true>(code) : decode_moment<false>(code);
    to[i] = i < count ? float_of(half << 16) * scale : 0.0f;
  }
}

__device__ __forceinline__ void write_codes(bool square, std::uint8_t* codes, bool packed, int count,
                                            const float (&from)[kPack], float inverse) {
  const bool is_nan = inverse != inverse;  // the bits of NaN differ between machines
  CodePack pack;
  for (int i = 0; i < kPack; ++i) {
    const std::uint32_t half = bits_of(from[i] * inverse) >> 16;
    const std::uint32_t code = square ? encode_moment<true>(half) : encode_moment<false>(half);
    const std::uint32_t greatest = square ? MomentCode<true>::kGreatest : MomentCode<false>::kGreatest;
    pack.code[i] = static_cast<std::uint8_t>(is_nan ? greatest : code);
  }
  if (packed) {
    *reinterpret_cast<CodePack*>(codes) = pack;
  } else {
    for (int i = 0; i < kPack; ++i) {
      if (i < count) codes[i] = pack.code[i];
    }
  }
}

// Elements [first, last) of a tensor: one block, or what the end of the tensor leaves of it.
template <class Update>
__device__ __forceinline__ void update_block(const UpdateTensorOnDevice& tensor, bool aligned, std::int64_t first,
                                             std::int64_t last, const UpdateHeader& header,
                                             const CoefficientsOf<Update, float>& c,
                                             const GradTransform<float>& transform) {
  const std::int64_t block = first / kMomentBlock;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Values<float, kPack> values[kPacks];
  std::uint32_t greatest[kMaxStates] = {};

  const auto elements = [&](int p) {
    const std::int64_t at = first + (p * kWarp + lane) * kPack;
    const std::int64_t left = last - at;
    const int count = left >= kPack ? kPack : left > 0 ? static_cast<int>(left) : 0;
    return Lane<Update>{tensor, nullptr, at, aligned && count == kPack, count};
  };
  const auto codes = [&](int k) { return static_cast<std::uint8_t*>(tensor.operand[kFirstState + k]); };

#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const Lane<Update> own = elements(p);
    own.load_param_and_grad(values[p]);
#pragma unroll
    for (int k = 0; k < kMaxStates; ++k) {
      if (!uses(Update::kStates, k)) continue;
      if (own.in_8_bits(k)) {
        read_codes(uses(Update::kSquares, k), values[p].state[k], codes(k) + own.first, own.packed, own.count,
                   tensor.absmax[k][block]);
      } else {
        own.load(kFirstState + k, values[p].state[k]);
      }
    }
    own.apply(c, transform, values[p]);
#pragma unroll
    for (int k = 0; k < kMaxStates; ++k) {
      if (!uses(Update::kStates, k)) continue;
      for (int i = 0; i < kPack; ++i) {
        if (i < own.count) greatest[k] = max(greatest[k], bits_of(values[p].state[k][i]) & 0x7fffffffu);
      }
    }
  }

#pragma unroll
  for (int k = 0; k < kMaxStates; ++k) {
    if (!uses(Update::kStates, k) || tensor.dtype[kFirstState + k] != DType::uint8) continue;
    const float scale = moment_scale(greatest_of_warp(greatest[k]));
    const float inverse = inverse_moment_scale(scale);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const Lane<Update> own = elements(p);
      write_codes(uses(Update::kSquares, k), codes(k) + own.first, own.packed, own.count, values[p].state[k], inverse);
    }
    if (lane == 0) tensor.absmax[k][block] = scale;
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const Lane<Update> own = elements(p);
    std::uint32_t numbers[kPack] = {};
    if (tensor.rounding == Rounding::stochastic) own.draw(header, numbers);
    own.store_values(values[p], numbers);
  }
}

// All tensors are flat: with strides the kernel would not fit into the registers (Backend::strided_8bit).
template <class Update>
__global__ void __launch_bounds__(kChunkThreads) update_8bit(const __grid_constant__ UpdateArguments arguments) {
  GradTransform<double> wide = arguments.transform;
  if (arguments.decision != nullptr) {
    if (!arguments.decision->applied) return;
    wide = arguments.decision->transform;
  }
  if (arguments.maximize) wide.scale = -wide.scale;
  const GradTransform<float> transform{static_cast<float>(wide.scale), static_cast<float>(wide.limit)};

  for_each_piece_of_chunk(
      arguments.elements, [&](const UpdateTensorOnDevice& tensor, std::int64_t first, std::int64_t last) {
        const auto& header = *reinterpret_cast<const UpdateHeader*>(arguments.coefficients + tensor.coefficients);
        const auto c = *reinterpret_cast<const CoefficientsOf<Update, float>*>(&header + 1);
        const bool aligned = packs_are_aligned<Update, kPack>(tensor);
        last = last < tensor.numel ? last : tensor.numel;
        const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) / kWarp * kMomentBlock;
        for (std::int64_t at = first + threadIdx.x / kWarp * kMomentBlock; at < last; at += stride) {
          const std::int64_t end = at + kMomentBlock < last ? at + kMomentBlock : last;
          update_block<Update>(tensor, aligned, at, end, header, c, transform);
        }
      });
}

template <class... Updates>
void launch_variant(TypeList<Updates...>, int variant, const UpdateArguments& arguments, cudaStream_t stream) {
  using Kernel = void (*)(UpdateArguments);
  constexpr Kernel kernels[] = {update_8bit<Updates>...};
  launch("update_8bit", kernels[variant], chunks(arguments.elements.numel), kChunkThreads, stream, arguments);
}

}  // namespace

void launch_update_8bit(int variant, const UpdateArguments& arguments, cudaStream_t stream) {
  launch_variant(UpdateVariants{}, variant, arguments, stream);
}

}  // namespace fusestep::cuda
