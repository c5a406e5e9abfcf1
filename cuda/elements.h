// A few elements of one parameter, as a thread of the optimizers' kernels holds them. The dtypes of the operands are
// looked up for each tensor.
#pragma once

#include "cuda/step.h"
#include "cuda/values.h"
#include "math/rounding.h"

namespace fusestep::cuda {

template <class Update, class T>
using CoefficientsOf = typename Update::template Coefficients<T>;

// `count` elements of a tensor, each at the offset that at(i) gives; at(0) is that of kCount neighbours where `packed`.
// Those beyond are 0.
template <class T, int kCount, class S, class At>
__device__ __forceinline__ void read_elements(T (&to)[kCount], const S* from, bool packed, int count, const At& at) {
  if (packed) {
    const auto pack = pack_at<S, kCount>(from + at(0));
    for (int i = 0; i < kCount; ++i) to[i] = widened<T>(pack.value[i]);
  } else {
    for (int i = 0; i < kCount; ++i) to[i] = i < count ? widened<T>(from[at(i)]) : T(0);
  }
}

template <int kCount, class S, class At, class Narrow>
__device__ __forceinline__ void write_elements(S* to, bool packed, int count, const At& at,
                                               const Narrow& narrowed_element) {
  S values[kCount];
  for (int i = 0; i < kCount; ++i) values[i] = narrowed_element(i);
  if constexpr (kCount > 1) {
    if (packed) return store_neighbours(to + at(0), values);
  }
  for (int i = 0; i < kCount; ++i) {
    if (i < count) to[at(i)] = values[i];
  }
}

// What a thread holds of one parameter in registers.
template <class T, int kCount>
struct Values {
  T param[kCount];
  T grad[kCount];
  T state[kMaxStates][kCount];
};

// Up to kCount elements of one parameter: neighbours of flat memory (`packed`), or elements of any layout.
template <class Update, class T, int kCount>
struct Elements {
  const UpdateTensorOnDevice& tensor;
  const StridedLayout* layout;  // nullptr: flat
  std::int64_t first;           // in the order of the layout
  bool packed;
  int count;

  __device__ __forceinline__ std::int64_t offset(int operand, int i) const {
    return layout != nullptr ? offset_of(*layout, operand, first + i) : first + i;
  }

  __device__ __forceinline__ void load(int operand, T (&to)[kCount]) const {
    const auto at = [&](int i) { return offset(operand, i); };
    void* const data = tensor.operand[operand];
    if constexpr (sizeof(T) == 8) {
      read_elements(to, static_cast<const T*>(data), packed, count, at);
    } else {
      switch (tensor.dtype[operand]) {
        case DType::float32:
          return read_elements(to, static_cast<const float*>(data), packed, count, at);
        case DType::bfloat16:
          return read_elements(to, static_cast<const BFloat16*>(data), packed, count, at);
        default:
          return read_elements(to, static_cast<const Float16*>(data), packed, count, at);
      }
    }
  }

  // numbers: the 16 random bits of each element, where the rounding is stochastic.
  __device__ __forceinline__ void store(int operand, const T (&from)[kCount],
                                        const std::uint32_t (&numbers)[kCount]) const {
    const auto at = [&](int i) { return offset(operand, i); };
    void* const data = tensor.operand[operand];
    if (sizeof(T) == 8 || tensor.dtype[operand] == DType::float32) {
      write_elements<kCount>(static_cast<T*>(data), packed, count, at, [&](int i) { return from[i]; });
      return;
    }
    if constexpr (sizeof(T) == 4) {
      const bool stochastic = tensor.rounding == Rounding::stochastic;
      if (tensor.dtype[operand] == DType::bfloat16) {
        write_elements<kCount>(static_cast<BFloat16*>(data), packed, count, at, [&](int i) {
          return stochastic ? to_bfloat16_stochastic(from[i], numbers[i]) : to_bfloat16(from[i]);
        });
      } else {
        write_elements<kCount>(static_cast<Float16*>(data), packed, count, at, [&](int i) {
          return stochastic ? to_float16_stochastic(from[i], numbers[i]) : to_float16(from[i]);
        });
      }
    }
  }

  __device__ __forceinline__ void store_master(const T (&value)[kCount]) const {
    write_elements<kCount>(
        static_cast<T*>(tensor.operand[kCompanion]), packed, count, [&](int i) { return offset(kCompanion, i); },
        [&](int i) { return value[i]; });
  }

  // The lower terms of parameters that are sums of two 16-bit floats, from the values that they stand for.
  __device__ __forceinline__ void store_compensation(const T (&value)[kCount]) const {
    if constexpr (sizeof(T) == 4) {
      const auto at = [&](int i) { return offset(kCompanion, i); };
      void* const data = tensor.operand[kCompanion];
      if (tensor.dtype[kCompanion] == DType::bfloat16) {
        write_elements<kCount>(static_cast<BFloat16*>(data), packed, count, at,
                               [&](int i) { return split<BFloat16>(value[i]).low; });
      } else {
        write_elements<kCount>(static_cast<Float16*>(data), packed, count, at,
                               [&](int i) { return split<Float16>(value[i]).low; });
      }
    }
  }

  // The random numbers of elements that lie from `position` on, within a group of numbers.
  __device__ __forceinline__ void draw_pack(const UpdateHeader& header, std::int64_t position,
                                            std::uint32_t (&numbers)[kCount]) const {
    const auto words = draw_group({header.seed, tensor.parameter, header.step}, position / kRoundingGroup);
    for (int i = 0; i < kCount; ++i) numbers[i] = number_of(words, position + i);
  }

  // The same for elements of any positions.
  __device__ __forceinline__ void draw(const UpdateHeader& header, std::uint32_t (&numbers)[kCount]) const {
    if (tensor.positions.is_whole()) return draw_pack(header, first, numbers);
    const RoundingDraw draw{header.seed, tensor.parameter, header.step};
    std::int64_t group = -1;
    PhiloxWords<std::uint32_t> words{};
    for (int i = 0; i < kCount; ++i) {
      const std::int64_t position = tensor.positions.of(first + i);
      if (position / kRoundingGroup != group) words = draw_group(draw, group = position / kRoundingGroup);
      numbers[i] = number_of(words, position);
    }
  }

  __device__ __forceinline__ bool in_8_bits(int k) const { return tensor.dtype[kFirstState + k] == DType::uint8; }

  __device__ __forceinline__ void load_param_and_grad(Values<T, kCount>& values) const {
    load(tensor.rounding == Rounding::master ? kCompanion : 0, values.param);
    if (tensor.rounding == Rounding::kahan) {
      T low[kCount];
      load(kCompanion, low);
#pragma unroll
      for (int i = 0; i < kCount; ++i) values.param[i] += low[i];
    }
    load(1, values.grad);
  }

  __device__ __forceinline__ static void apply(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform,
                                               Values<T, kCount>& values) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      T one[kMaxStates];
#pragma unroll
      for (int k = 0; k < kMaxStates; ++k) {
        if (uses(Update::kStates, k)) one[k] = values.state[k][i];
      }
      Update::apply(c, values.param[i], transform(values.grad[i]), one);
#pragma unroll
      for (int k = 0; k < kMaxStates; ++k) {
        if (uses(Update::kStates, k)) values.state[k][i] = one[k];
      }
    }
  }

  // All but states in 8 bits. numbers: of the elements, where rounding is stochastic.
  __device__ __forceinline__ void store_values(const Values<T, kCount>& values,
                                               const std::uint32_t (&numbers)[kCount]) const {
    store(0, values.param, numbers);
    if (tensor.rounding == Rounding::master) store_master(values.param);
    if (tensor.rounding == Rounding::kahan) store_compensation(values.param);
#pragma unroll
    for (int k = 0; k < kMaxStates; ++k) {
      if (!uses(Update::kStates, k) || in_8_bits(k)) continue;
      std::uint32_t rotated[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) rotated[i] = rotate_number(numbers[i], k);
      store(kFirstState + k, values.state[k], rotated);
    }
  }

  // Packs must be as ShardPositions::keeps_packs says.
  __device__ __forceinline__ void update(const UpdateHeader& header, const CoefficientsOf<Update, T>& c,
                                         const GradTransform<T>& transform) const {
    Values<T, kCount> values;
    load_param_and_grad(values);
#pragma unroll
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) load(kFirstState + k, values.state[k]);
    }
    apply(c, transform, values);
    std::uint32_t numbers[kCount] = {};
    if (tensor.rounding == Rounding::stochastic) draw_pack(header, tensor.positions.of(first), numbers);
    store_values(values, numbers);
  }

 private:
  static __device__ __forceinline__ PhiloxWords<std::uint32_t> draw_group(const RoundingDraw& draw,
                                                                          std::int64_t group) {
    return rounding_words<std::uint32_t>(draw, static_cast<std::uint32_t>(group),
                                         static_cast<std::uint32_t>(static_cast<std::uint64_t>(group) >> 32));
  }

  // Not by an index that only the run knows: the words would move to local memory.
  static __device__ __forceinline__ std::uint32_t number_of(const PhiloxWords<std::uint32_t>& words,
                                                            std::int64_t position) {
    const std::uint32_t lower = (position & 2) != 0 ? words.word[1] : words.word[0];
    const std::uint32_t upper = (position & 2) != 0 ? words.word[3] : words.word[2];
    return ((position & 4) != 0 ? upper : lower) >> ((position & 1) * 16) & 0xffffu;
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

}  // namespace fusestep::cuda
