// One slice of an optimizer step, for every update variant.
//
// Operands that are flat and stored alike are updated where they are (cpu/kernels/flat_update.h). Those of strided
// tensors, of different dtypes and in 8 bits are brought to buffers in the first-level cache, a few elements at a time.
#include "cpu/kernels/convert.h"
#include "cpu/kernels/flat_update.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/moments.h"
#include "cpu/kernels/rounding_numbers.h"
#include "cpu/kernels/slice.h"
#include "math/rounding.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

// Elements that are converted together.
constexpr std::int64_t kChunk = kStridedBuffer;
static_assert(kChunk == kMomentBlock);

template <class T>
constexpr DType kArithmeticDType = sizeof(T) == 8 ? DType::float64 : DType::float32;

// The tensor that the arithmetic updates: a parameter with a float32 copy is that copy.
FUSESTEP_HD int arithmetic_operand(const UpdateTensor& tensor, int operand) {
  return operand == 0 && tensor.rounding == Rounding::master ? kCompanion : operand;
}

// Some neighbouring elements of a tensor.
struct Span {
  std::int64_t first;
  std::int64_t count;  // at most kChunk
  ElementCursor start;
};

// Elements of an operand side by side: where they are if the tensor is flat, else copied to `room`.
template <class S>
FUSESTEP_HD S* gathered(const UpdateTensor& tensor, int operand, const Span& span, S* room) {
  S* const data = static_cast<S*>(tensor.operand[operand]);
  if (tensor.layout == nullptr) return data + span.first;
  ElementCursor cursor = span.start;
  for_each_run(cursor, span.count, [&](std::int64_t i, std::int64_t run) {
    gather(room + i, data + cursor.offset(operand), cursor.step(operand), run);
  });
  return room;
}

// Where they are to be written: there if the tensor is flat, else to `room`, from where `scattered` takes them.
template <class S>
FUSESTEP_HD S* destination(const UpdateTensor& tensor, int operand, const Span& span, S* room) {
  return tensor.layout == nullptr ? static_cast<S*>(tensor.operand[operand]) + span.first : room;
}
template <class S>
FUSESTEP_HD void scattered(const UpdateTensor& tensor, int operand, const Span& span, const S* room) {
  if (tensor.layout == nullptr) return;
  S* const data = static_cast<S*>(tensor.operand[operand]);
  ElementCursor cursor = span.start;
  for_each_run(cursor, span.count, [&](std::int64_t i, std::int64_t run) {
    scatter(data + cursor.offset(operand), cursor.step(operand), room + i, run);
  });
}

// Calls visit with an element of a 16-bit dtype.
template <class Visit>
FUSESTEP_HD void with_half(DType dtype, const Visit& visit) {
  if (dtype == DType::bfloat16) {
    visit(BFloat16{});
  } else {
    visit(Float16{});
  }
}

// Whether the arithmetic can use the operand's own memory.
template <class T>
FUSESTEP_HD bool in_place(const UpdateTensor& tensor, int operand) {
  return tensor.layout == nullptr && tensor.dtype[operand] == kArithmeticDType<T>;
}

// Elements of another operand, as the arithmetic reads them.
template <class T>
FUSESTEP_HD void load_elements(const UpdateTensor& tensor, int operand, const Span& span, T* values) {
  if (tensor.dtype[operand] == kArithmeticDType<T>) {
    gathered(tensor, operand, span, values);
    return;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    with_half(tensor.dtype[operand], [&]<class S>(S) {
      const bool compensated = operand == 0 && tensor.rounding == Rounding::kahan;
      alignas(64) S room[kChunk];
      alignas(64) S low_room[kChunk];
      const S* const low = compensated ? gathered(tensor, kCompanion, span, low_room) : nullptr;
      widen(values, gathered(tensor, operand, span, room), low, span.count);
    });
  }
}

// numbers: of the elements where rounding is stochastic, else nullptr.
template <class T>
FUSESTEP_HD void store_elements(const UpdateTensor& tensor, int operand, const Span& span, const T* values,
                                const std::uint16_t* numbers) {
  if (tensor.dtype[operand] == kArithmeticDType<T>) return scattered(tensor, operand, span, values);
  if constexpr (sizeof(T) == sizeof(float)) {
    with_half(tensor.dtype[operand], [&]<class S>(S) {
      const bool compensated = operand == 0 && tensor.rounding == Rounding::kahan;
      alignas(64) S room[kChunk];
      alignas(64) S low_room[kChunk];
      S* const to = destination(tensor, operand, span, room);
      S* const low = compensated ? destination(tensor, kCompanion, span, low_room) : nullptr;
      std::uint16_t rotated[kChunk];
      const std::uint16_t* own = numbers;
      if (numbers != nullptr && operand >= kFirstState) {
        for (std::int64_t i = 0; i < span.count; ++i) {
          rotated[i] = static_cast<std::uint16_t>(rotate_number<std::uint32_t>(numbers[i], operand - kFirstState));
        }
        own = rotated;
      }
      round_values(to, low, values, span.count, own);
      scattered(tensor, operand, span, to);
      if (compensated) scattered(tensor, kCompanion, span, low);
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
  const RoundingNumbers rounding{{header.seed, tensor.parameter, header.step}, tensor.positions};
  alignas(64) T buffer[kCompanion][kChunk];
  alignas(64) std::uint16_t room[kRoomForNumbers];
  T* own[kCompanion] = {};    // of the operands that are used in place
  int converted[kCompanion];  // the others, without moments in 8 bits
  int num_converted = 0;
  bool in_8_bits = false;  // some moments
  for (int k = 0; k < kCompanion; ++k) {
    if (k >= kFirstState && !uses(update.states, k - kFirstState)) continue;
    const int operand = arithmetic_operand(tensor, k);
    if (tensor.dtype[k] == DType::uint8) {
      in_8_bits = true;
    } else if (in_place<T>(tensor, operand)) {
      own[k] = static_cast<T*>(tensor.operand[operand]);
    } else {
      converted[num_converted++] = k;
    }
  }
  while (count > 0) {
    const std::int64_t n = std::min(count, kChunk - first % kChunk);
    const Span span{first, n, ElementCursor(tensor.layout, first)};
    T* at[kCompanion];
    for (int k = 0; k < kCompanion; ++k) at[k] = own[k] != nullptr ? own[k] + first : buffer[k];
    for (int j = 0; j < num_converted; ++j) {
      const int k = converted[j];
      load_elements(tensor, arithmetic_operand(tensor, k), span, buffer[k]);
    }
    if constexpr (kFloat) {
      if (in_8_bits) decode_states(update, tensor, first, n, buffer + kFirstState);
    }
    const FlatOperands<T, T> x{at[0], at[1], {at[2], at[3], at[4]}, nullptr, nullptr, nullptr, 0};
    update_all(update.flat, &header + 1, transform, x, n);
    if constexpr (kFloat) {
      if (in_8_bits) encode_states(update, tensor, first, n, buffer + kFirstState);
    }
    const std::uint16_t* const numbers =
        tensor.rounding == Rounding::stochastic ? rounding.of(first, n, room) : nullptr;
    for (int j = 0; j < num_converted; ++j) {
      const int k = converted[j];
      if (k == 1) continue;  // the gradient
      store_elements(tensor, arithmetic_operand(tensor, k), span, buffer[k], numbers);
    }
    if (tensor.rounding == Rounding::master) store_elements(tensor, 0, span, at[0], nullptr);
    first += n;
    count -= n;
  }
}

// Whether all operands are flat and stored alike, a float32 copy of the parameter aside.
template <class T>
bool stored_alike(const FlatUpdate<T>& update, const UpdateTensor& tensor) {
  bool alike = tensor.layout == nullptr && tensor.dtype[1] == tensor.dtype[0];
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(update.states, k)) alike = alike && tensor.dtype[kFirstState + k] == tensor.dtype[0];
  }
  return alike;
}

// Such a tensor, stored as S.
template <class T, class S>
void update_in_place(UpdateFlat<T, S> update, StateSet states, const UpdateHeader& header,
                     const GradTransform<T>& transform, const UpdateTensor& tensor, std::int64_t first,
                     std::int64_t count) {
  const auto at = [&]<class U>(int operand, U) { return static_cast<U*>(tensor.operand[operand]) + first; };
  FlatOperands<T, S> x{};
  x.param = at(0, S{});
  x.grad = at(1, S{});
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(states, k)) x.state[k] = at(kFirstState + k, S{});
  }
  if constexpr (kInHalves<T, S>) {
    const RoundingNumbers numbers{{header.seed, tensor.parameter, header.step}, tensor.positions};
    if (tensor.rounding == Rounding::kahan) x.compensation = at(kCompanion, S{});
    if (tensor.rounding == Rounding::master) x.master = at(kCompanion, T{});
    if (tensor.rounding == Rounding::stochastic) x.numbers = &numbers;
    x.first = first;
    return update_all(update, &header + 1, transform, x, count);
  }
  update_all(update, &header + 1, transform, x, count);
}

template <class T>
void update_pieces(const FlatUpdate<T>& update, const UpdateJob& job, std::int64_t slice) {
  const GradTransform<T> transform{static_cast<T>(job.transform.scale), static_cast<T>(job.transform.limit)};
  for_each_piece(job, slice, [&](const UpdateTensor& tensor, std::int64_t first, std::int64_t count) {
    const auto& header = *reinterpret_cast<const UpdateHeader*>(job.coefficients + tensor.coefficients);
    count = std::min(count, tensor.numel - first);
    if (!stored_alike(update, tensor)) return update_converted(update, header, transform, tensor, first, count);
    const auto in_place = [&](auto flat) {
      update_in_place(flat, update.states, header, transform, tensor, first, count);
    };
    if constexpr (sizeof(T) == sizeof(float)) {
      if (tensor.dtype[0] == DType::bfloat16) return in_place(update.flat_bfloat16);
      if (tensor.dtype[0] == DType::float16) return in_place(update.flat_float16);
    }
    in_place(update.flat);
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
