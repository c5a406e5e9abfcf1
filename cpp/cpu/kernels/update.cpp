// One slice of an optimizer step, for every update variant.
//
// The arithmetic is compiled for float and for double, on flat memory. Operands of another dtype, of strided tensors,
// and parameters that are rounded in another way than to the nearest are converted through a buffer in the first-level
// cache, a few elements at a time.
#include "cpu/kernels/convert.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/moments.h"
#include "cpu/kernels/random.h"
#include "cpu/kernels/slice.h"
#include "math/rounding.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class Update, class T>
using CoefficientsOf = typename Update::template Coefficients<T>;

// One vector's worth, in place.
template <class Update, class T>
FUSESTEP_HD void update_vector(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform, T* param,
                               const T* grad, T* const* state, std::int64_t i) {
  using V = Vec<T>;
  V p = V::load(param + i);
  V s[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) s[k] = V::load(state[k] + i);
  }
  Update::apply(c, p, transform(V::load(grad + i)), s);
  p.store(param + i);
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) s[k].store(state[k] + i);
  }
}

// What is left at the end is padded to a whole vector in a buffer: the same arithmetic as everywhere else, and nothing
// is read or written past the tensor.
template <class Update, class T>
FUSESTEP_HD void update_tail(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform, T* param,
                             const T* grad, T* const* state, std::int64_t count) {
  constexpr int kWidth = Vec<T>::kWidth;
  T param_buffer[kWidth] = {};
  T grad_buffer[kWidth] = {};
  T state_buffer[kMaxStates][kWidth] = {};
  T* state_buffers[kMaxStates];
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  memcpy(param_buffer, param, bytes);
  memcpy(grad_buffer, grad, bytes);
  for (int k = 0; k < kMaxStates; ++k) {
    state_buffers[k] = state_buffer[k];
    if (uses(Update::kStates, k)) memcpy(state_buffer[k], state[k], bytes);
  }
  update_vector<Update, T>(c, transform, param_buffer, grad_buffer, state_buffers, 0);
  memcpy(param, param_buffer, bytes);
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) memcpy(state[k], state_buffer[k], bytes);
  }
}

template <class Update, class T>
void update_flat(const void* coefficients, const GradTransform<T>& transform_, T* param, const T* grad,
                 T* const* state_, std::int64_t count) {
  // Copies: the compiler keeps them in registers only if no store to a tensor could reach them.
  const auto c = *static_cast<const CoefficientsOf<Update, T>*>(coefficients);
  const GradTransform<T> transform = transform_;
  T* state[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) state[k] = uses(Update::kStates, k) ? state_[k] : nullptr;
  constexpr int kWidth = Vec<T>::kWidth;
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(T));
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    __builtin_prefetch(param + i + kAhead, 1);
    __builtin_prefetch(grad + i + kAhead, 0);
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) __builtin_prefetch(state[k] + i + kAhead, 1);
    }
    update_vector<Update, T>(c, transform, param, grad, state, i);
  }
  if (i == count) return;
  T* rest[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) rest[k] = uses(Update::kStates, k) ? state[k] + i : nullptr;
  update_tail<Update, T>(c, transform, param + i, grad + i, rest, count - i);
}

// A variant, as a value: what surrounds its arithmetic is compiled once for all of them.
template <class T>
struct FlatUpdate {
  void (*run)(const void* coefficients, const GradTransform<T>& transform, T* param, const T* grad, T* const* state,
              std::int64_t count);
  StateSet states;
  StateSet squares;
};

template <class Update, class T>
constexpr FlatUpdate<T> kFlatUpdate{update_flat<Update, T>, Update::kStates, Update::kSquares};

// Elements that are converted together.
constexpr std::int64_t kChunk = kStridedBuffer;
static_assert(kChunk == kMomentBlock);

template <class T>
constexpr DType kArithmeticDType = sizeof(T) == 8 ? DType::float64 : DType::float32;

// The room that the random numbers of a chunk need: whole blocks are drawn, and more than one at either end is not.
constexpr std::int64_t kChunkNumbers = kChunk + 2 * kRandomBlock;

// The 16 bits of positions [first, first + count), at `numbers` + first % kRandomBlock.
FUSESTEP_HD const std::uint16_t* draw_neighbours(const RoundingDraw& draw, std::int64_t first, std::int64_t count,
                                                 std::uint16_t* numbers) {
  const std::int64_t begin = first / kRandomBlock * kRandomBlock;
  for (std::int64_t block = begin; block < first + count; block += kRandomBlock) {
    random_block(block, numbers + (block - begin),
                 [&](Vec<std::uint32_t> low, std::uint32_t high) { return rounding_words(draw, low, high); });
  }
  return numbers + (first - begin);
}

// The 16 bits of elements [first, first + count) of a tensor, somewhere in `numbers`, which has room for kChunkNumbers.
FUSESTEP_HD const std::uint16_t* draw_numbers(const RoundingDraw& draw, const ShardPositions& positions,
                                              std::int64_t first, std::int64_t count, std::uint16_t* numbers) {
  if (count <= positions.left(first)) return draw_neighbours(draw, positions.of(first), count, numbers);
  alignas(64) std::uint16_t run_numbers[kChunkNumbers];
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t run = std::min(count - i, positions.left(first + i));
    const std::uint16_t* const drawn = draw_neighbours(draw, positions.of(first + i), run, run_numbers);
    memcpy(numbers + i, drawn, static_cast<std::size_t>(run) * sizeof *numbers);
    i += run;
  }
  return numbers;
}

// The tensor that the arithmetic updates: a parameter with a float32 copy is that copy.
FUSESTEP_HD int arithmetic_operand(const UpdateTensor& tensor, int operand) {
  return operand == 0 && tensor.rounding == Rounding::master ? kCompanion : operand;
}

// Whether the arithmetic can use the operand's own memory.
template <class T>
FUSESTEP_HD bool in_place(const UpdateTensor& tensor, int operand) {
  return tensor.layout == nullptr && tensor.dtype[operand] == kArithmeticDType<T>;
}

template <class T>
FUSESTEP_HD void load_elements(T* to, const UpdateTensor& tensor, int operand, const ElementCursor& cursor,
                               std::int64_t count) {
  const std::int64_t element = cursor.offset(operand);
  const std::int64_t step = cursor.step(operand);
  void* const data = tensor.operand[operand];
  if (tensor.dtype[operand] == kArithmeticDType<T>) {
    gather(to, static_cast<const T*>(data) + element, step, count);
    return;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    with_half(data, tensor.dtype[operand], element, [&](const auto* from) { widen(to, from, step, count); });
    if (operand != 0 || tensor.rounding != Rounding::kahan) return;
    const std::int64_t low = cursor.offset(kCompanion);
    with_half(tensor.operand[kCompanion], tensor.dtype[kCompanion], low, [&](const auto* from) {
      for (std::int64_t i = 0; i < count; ++i) to[i] += to_float(from[i * cursor.step(kCompanion)]);
    });
  }
}

// numbers: of the elements where rounding is stochastic, else nullptr.
template <class T>
FUSESTEP_HD void store_elements(const UpdateTensor& tensor, int operand, const ElementCursor& cursor, const T* from,
                                std::int64_t count, const std::uint16_t* numbers) {
  const std::int64_t element = cursor.offset(operand);
  const std::int64_t step = cursor.step(operand);
  void* const data = tensor.operand[operand];
  if (tensor.dtype[operand] == kArithmeticDType<T>) {
    scatter(static_cast<T*>(data) + element, step, from, count);
    return;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    with_half(data, tensor.dtype[operand], element, [&]<class S>(S* to) {
      if (numbers != nullptr) {
        narrow_stochastic(to, step, from, count, numbers);
      } else {
        narrow(to, step, from, count);
      }
      if (operand != 0 || tensor.rounding != Rounding::kahan) return;
      S* const low = static_cast<S*>(tensor.operand[kCompanion]) + cursor.offset(kCompanion);
      narrow_each(low, cursor.step(kCompanion), count, from,
                  [](std::int64_t /*i*/, float x) { return split<S>(x).low; });
    });
  }
}

// Calls visit(values, codes, scale, square) for each state in 8 bits. At `first` begins a block, or what the end of the
// tensor leaves of it; `values` has room for one of each state.
template <class Visit>
FUSESTEP_HD void for_each_code(const FlatUpdate<float>& update, const UpdateTensor& tensor, std::int64_t first,
                               float (*values)[kMomentBlock], const Visit& visit) {
  for (int k = 0; k < kMaxStates; ++k) {
    if (!uses(update.states, k) || tensor.dtype[kFirstState + k] != DType::uint8) continue;
    visit(values[k], static_cast<std::uint8_t*>(tensor.operand[kFirstState + k]) + first,
          tensor.absmax[k] + first / kMomentBlock, uses(update.squares, k));
  }
}

void decode_states(const FlatUpdate<float>& update, const UpdateTensor& tensor, std::int64_t first, std::int64_t count,
                   float (*values)[kMomentBlock]) {
  for_each_code(update, tensor, first, values, [&](float* to, const std::uint8_t* codes, float* scale, bool square) {
    (square ? dequantize_block<true> : dequantize_block<false>)(to, codes, *scale, count);
  });
}

void encode_states(const FlatUpdate<float>& update, const UpdateTensor& tensor, std::int64_t first, std::int64_t count,
                   float (*values)[kMomentBlock]) {
  // All scales first: the codes of one state are not held up by the division of the other.
  for_each_code(
      update, tensor, first, values,
      [&](float* from, std::uint8_t* /*codes*/, float* scale, bool /*square*/) { *scale = scale_block(from, count); });
  for_each_code(update, tensor, first, values, [&](const float* from, std::uint8_t* codes, float* scale, bool square) {
    (square ? quantize_block<true> : quantize_block<false>)(codes, from, *scale, count);
  });
}

template <class T>
void update_converted(const FlatUpdate<T>& update, const UpdateHeader& header, const GradTransform<T>& transform,
                      const UpdateTensor& tensor, std::int64_t first, std::int64_t count) {
  constexpr bool kFloat = sizeof(T) == sizeof(float);
  const RoundingDraw draw{header.seed, tensor.parameter, header.step};
  alignas(64) T buffer[kCompanion][kChunk];
  alignas(64) std::uint16_t numbers[kChunkNumbers];
  std::uint16_t rotated[kChunk];
  ElementCursor from(tensor.layout, first);
  ElementCursor to(tensor.layout, first);
  const auto for_each_operand = [&](const auto& visit) {
    for (int k = 0; k < kCompanion; ++k) {
      const bool used = k < kFirstState || uses(update.states, k - kFirstState);
      if (used && tensor.dtype[k] != DType::uint8) visit(k, arithmetic_operand(tensor, k));
    }
  };
  while (count > 0) {
    const std::int64_t n = std::min(count, kChunk - first % kChunk);
    T* at[kCompanion];
    for (int k = 0; k < kCompanion; ++k) at[k] = buffer[k];
    for_each_operand([&](int k, int operand) {
      if (in_place<T>(tensor, operand)) at[k] = static_cast<T*>(tensor.operand[operand]) + first;
    });
    for_each_run(from, n, [&](std::int64_t i, std::int64_t run) {
      for_each_operand([&](int k, int operand) {
        if (at[k] == buffer[k]) load_elements(at[k] + i, tensor, operand, from, run);
      });
    });
    if constexpr (kFloat) decode_states(update, tensor, first, n, buffer + kFirstState);
    update.run(&header + 1, transform, at[0], at[1], at + kFirstState, n);
    if constexpr (kFloat) encode_states(update, tensor, first, n, buffer + kFirstState);
    const std::uint16_t* const drawn =
        tensor.rounding == Rounding::stochastic ? draw_numbers(draw, tensor.positions, first, n, numbers) : nullptr;
    for_each_operand([&](int k, int operand) {
      if (k == 1 || at[k] != buffer[k]) return;
      const std::uint16_t* own = drawn;
      if (drawn != nullptr && k >= kFirstState) {
        for (std::int64_t i = 0; i < n; ++i) {
          rotated[i] = static_cast<std::uint16_t>(rotate_number(drawn[i], k - kFirstState));
        }
        own = rotated;
      }
      ElementCursor cursor = to;
      for_each_run(cursor, n, [&](std::int64_t i, std::int64_t run) {
        store_elements(tensor, operand, cursor, at[k] + i, run, own != nullptr ? own + i : nullptr);
      });
    });
    if (tensor.rounding == Rounding::master) {
      ElementCursor cursor = to;
      for_each_run(cursor, n, [&](std::int64_t i, std::int64_t run) {
        store_elements(tensor, 0, cursor, at[0] + i, run, nullptr);
      });
    }
    to = from;
    first += n;
    count -= n;
  }
}

// Whether all states are in 8 bits, and nothing else needs to be converted.
bool nothing_but_codes(const FlatUpdate<float>& update, const UpdateTensor& tensor) {
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(update.states, k) && tensor.dtype[kFirstState + k] != DType::uint8) return false;
  }
  return tensor.rounding == Rounding::nearest && in_place<float>(tensor, 0) && in_place<float>(tensor, 1);
}

// Such a tensor.
void update_blocks(const FlatUpdate<float>& update, const UpdateHeader& header, const GradTransform<float>& transform,
                   const UpdateTensor& tensor, std::int64_t first, std::int64_t count) {
  auto* const param = static_cast<float*>(tensor.operand[0]);
  const auto* const grad = static_cast<const float*>(tensor.operand[1]);
  alignas(64) float moments[kMaxStates][kMomentBlock];
  float* state[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) state[k] = moments[k];
  while (count > 0) {
    const std::int64_t n = std::min<std::int64_t>(count, kMomentBlock);
    decode_states(update, tensor, first, n, moments);
    update.run(&header + 1, transform, param + first, grad + first, state, n);
    encode_states(update, tensor, first, n, moments);
    first += n;
    count -= n;
  }
}

template <class T>
void update_pieces(const FlatUpdate<T>& update, const UpdateJob& job, std::int64_t slice) {
  const GradTransform<T> transform{static_cast<T>(job.transform.scale), static_cast<T>(job.transform.limit)};
  for_each_piece(job, slice, [&](const UpdateTensor& tensor, std::int64_t first, std::int64_t count) {
    const auto& header = *reinterpret_cast<const UpdateHeader*>(job.coefficients + tensor.coefficients);
    count = std::min(count, tensor.numel - first);
    bool all_in_place = tensor.rounding == Rounding::nearest && in_place<T>(tensor, 0) && in_place<T>(tensor, 1);
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(update.states, k)) all_in_place = all_in_place && in_place<T>(tensor, kFirstState + k);
    }
    if (!all_in_place) {
      if constexpr (sizeof(T) == sizeof(float)) {
        if (nothing_but_codes(update, tensor)) return update_blocks(update, header, transform, tensor, first, count);
      }
      return update_converted(update, header, transform, tensor, first, count);
    }
    T* state[kMaxStates] = {};
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(update.states, k)) state[k] = static_cast<T*>(tensor.operand[kFirstState + k]) + first;
    }
    update.run(&header + 1, transform, static_cast<T*>(tensor.operand[0]) + first,
               static_cast<const T*>(tensor.operand[1]) + first, state, count);
  });
}

template <class Update, class T>
void update_slice(const UpdateJob& job, std::int64_t slice) {
  update_pieces(kFlatUpdate<Update, T>, job, slice);
}

}  // namespace

void fill_updates(CpuKernels& kernels) {
  int variant = 0;
  for_each_type(UpdateVariants{}, [&]<class Update>(TypeList<Update>) {
    auto& row = kernels.update[variant++];
    row[static_cast<int>(Arithmetic::float32)] = update_slice<Update, float>;
    row[static_cast<int>(Arithmetic::float64)] = update_slice<Update, double>;
  });
}

}  // namespace fusestep::FUSESTEP_ISA
