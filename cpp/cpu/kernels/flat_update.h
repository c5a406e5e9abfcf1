// The arithmetic of an update, on flat memory: compiled for every variant of every optimizer, in float and in double.
// For updates in float, tensors may be stored in 16 bits, all in the same dtype, and rounded in every way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kernels/convert.h"
#include "cpu/kernels/rounding_numbers.h"
#include "cpu/kernels/slice.h"
#include "math/clip.h"
#include "math/optim/all.h"
#include "simd/vec.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class Update, class T>
using CoefficientsOf = typename Update::template Coefficients<T>;

// Whether S is 16 bits, not the arithmetic's type T itself.
template <class T, class S>
constexpr bool kInHalves = !std::is_same_v<T, S>;

// Neighbouring elements of the operands, stored as S: as T, or in 16 bits.
template <class T, class S>
struct FlatOperands {
  S* param;
  const S* grad;
  S* state[kMaxStates];  // nullptr: the variant has none
  // For 16 bits alone; nullptr where parameters are rounded in another way.
  S* compensation;                 // Rounding::kahan: the parameter is the sum of both
  T* master;                       // Rounding::master: what is updated, `param` is its rounded copy
  const RoundingNumbers* numbers;  // Rounding::stochastic
  std::int64_t first;              // what `numbers` calls the first element

  // Those from element i on.
  FUSESTEP_HD FlatOperands from(std::int64_t i) const {
    FlatOperands rest = *this;
    rest.param += i;
    rest.grad += i;
    for (int k = 0; k < kMaxStates; ++k) rest.state[k] += state[k] == nullptr ? 0 : i;
    rest.compensation += compensation == nullptr ? 0 : i;
    rest.master += master == nullptr ? 0 : i;
    rest.first += i;
    return rest;
  }
};

// The vectors that are updated together: as many as fill a vector of the type that they are stored in.
template <class T, class S>
constexpr int kVectors = kInHalves<T, S> ? 2 : 1;

template <class T, class S>
constexpr int kStep = kVectors<T, S> * Vec<T>::kWidth;

template <class T>
FUSESTEP_HD void store_state(T* to, std::int64_t i, const Vec<T> (&x)[1], const std::uint16_t* /*numbers*/,
                             int /*state*/) {
  x[0].store(to + i);
}
template <class S>
FUSESTEP_HD void store_state(S* to, std::int64_t i, const Vec<float> (&x)[2], const std::uint16_t* numbers, int state) {
  if (numbers != nullptr) {
    store_pair_stochastic(to + i, x[0], x[1], numbers + i, state);
  } else {
    store_pair(to + i, x[0], x[1]);
  }
}

// The vectors at i, in place. values: of the parameter, as the arithmetic takes it. numbers: of stochastic rounding, or
// nullptr.
template <class Update, class T, class S>
FUSESTEP_HD void update_vectors(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform,
                                const FlatOperands<T, S>& x, std::int64_t i, T* values, const std::uint16_t* numbers) {
  using V = Vec<T>;
  V states[kMaxStates][kVectors<T, S>];
  for (int n = 0; n < kVectors<T, S>; ++n) {
    const std::int64_t at = i + n * V::kWidth;
    V p = V::load(values + at);
    V s[kMaxStates];
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) s[k] = V::load(x.state[k] + at);
    }
    Update::apply(c, p, transform(V::load(x.grad + at)), s);
    p.store(values + at);
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) states[k][n] = s[k];
    }
  }
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) store_state(x.state[k], i, states[k], numbers, k);
  }
}

template <class Update, class T, class S>
FUSESTEP_HD void prefetch(const FlatOperands<T, S>& x, std::int64_t i) {
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(S));
  if constexpr (!kInHalves<T, S>) __builtin_prefetch(x.param + i + kAhead, 1);
  __builtin_prefetch(x.grad + i + kAhead, 0);
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) __builtin_prefetch(x.state[k] + i + kAhead, 1);
  }
}

// count: a multiple of kStep.
template <class Update, class T, class S>
void update_flat(const void* coefficients, const GradTransform<T>& transform_, const FlatOperands<T, S>& operands,
                 std::int64_t count) {
  // Copies: the compiler keeps them in registers only if no store to a tensor could reach them.
  const auto c = *static_cast<const CoefficientsOf<Update, T>*>(coefficients);
  const GradTransform<T> transform = transform_;
  const FlatOperands<T, S> x = operands;
  if constexpr (!kInHalves<T, S>) {
    for (std::int64_t i = 0; i < count; i += kStep<T, S>) {
      prefetch<Update>(x, i);
      update_vectors<Update>(c, transform, x, i, x.param, nullptr);
    }
  } else {
    // Parameters are widened and rounded a few at a time, not one by one. Their new values come last, after a root and
    // a division: rounded at once, they would fill the processor's queues with instructions that wait for them, and
    // later elements could not begin.
    alignas(64) T buffer[kStridedBuffer];
    alignas(64) std::uint16_t room[kRoomForNumbers];
    for (std::int64_t first = 0; first < count; first += kStridedBuffer) {
      const std::int64_t n = std::min(count - first, kStridedBuffer);
      const FlatOperands<T, S> part = x.from(first);
      const std::uint16_t* const numbers = x.numbers == nullptr ? nullptr : x.numbers->of(part.first, n, room);
      T* const values = x.master == nullptr ? buffer : part.master;
      if (x.master == nullptr) widen(values, part.param, part.compensation, n);
      for (std::int64_t i = 0; i < n; i += kStep<T, S>) {
        prefetch<Update>(part, i);
        update_vectors<Update>(c, transform, part, i, values, numbers);
      }
      round_values(part.param, part.compensation, values, n, numbers);
    }
  }
}

template <class T, class S>
using UpdateFlat = void (*)(const void* coefficients, const GradTransform<T>& transform,
                            const FlatOperands<T, S>& operands, std::int64_t count);

// The elements from `first` on, fewer than kStep, are padded in a buffer: the same arithmetic as everywhere else, and
// nothing is read or written past the tensor.
template <class T, class S>
[[gnu::noinline]] void update_tail(UpdateFlat<T, S> update, const void* coefficients, const GradTransform<T>& transform,
                                   const FlatOperands<T, S>& x, std::int64_t first, std::int64_t count) {
  S room[3 + kMaxStates][kStep<T, S>] = {};
  T master_room[kStep<T, S>] = {};
  FlatOperands<T, S> padded{};
  padded.param = room[0];
  padded.grad = room[1];
  for (int k = 0; k < kMaxStates; ++k) padded.state[k] = x.state[k] == nullptr ? nullptr : room[2 + k];
  if constexpr (kInHalves<T, S>) {
    if (x.compensation != nullptr) padded.compensation = room[2 + kMaxStates];
    if (x.master != nullptr) padded.master = master_room;
    padded.numbers = x.numbers;
    padded.first = x.first + first;
  }
  const auto for_each_written = [&](const auto& visit) {
    visit(x.param, padded.param);
    for (int k = 0; k < kMaxStates; ++k) visit(x.state[k], padded.state[k]);
    if constexpr (kInHalves<T, S>) {
      visit(x.compensation, padded.compensation);
      visit(x.master, padded.master);
    }
  };
  memcpy(room[1], x.grad + first, static_cast<std::size_t>(count) * sizeof(S));
  for_each_written([&]<class U>(const U* tensor, U* to) {
    if (tensor != nullptr) memcpy(to, tensor + first, static_cast<std::size_t>(count) * sizeof(U));
  });
  update(coefficients, transform, padded, kStep<T, S>);
  for_each_written([&]<class U>(U* tensor, const U* from) {
    if (tensor != nullptr) memcpy(tensor + first, from, static_cast<std::size_t>(count) * sizeof(U));
  });
}

template <class T, class S>
FUSESTEP_HD void update_all(UpdateFlat<T, S> update, const void* coefficients, const GradTransform<T>& transform,
                            const FlatOperands<T, S>& x, std::int64_t count) {
  const std::int64_t rest = count % kStep<T, S>;
  if (count > rest) update(coefficients, transform, x, count - rest);
  if (rest > 0) update_tail(update, coefficients, transform, x, count - rest, rest);
}

// A variant, as a value: what surrounds its arithmetic is compiled once for all of them.
template <class T>
struct FlatUpdate;

template <>
struct FlatUpdate<float> {
  UpdateFlat<float, float> flat;  // of tensors stored as float, and below in 16 bits
  UpdateFlat<float, BFloat16> flat_bfloat16;
  UpdateFlat<float, Float16> flat_float16;
  StateSet states;
  StateSet squares;
};
template <>
struct FlatUpdate<double> {
  UpdateFlat<double, double> flat;
  StateSet states;
  StateSet squares;
};

template <class Update, class T>
constexpr FlatUpdate<T> kFlatUpdate;

template <class Update>
constexpr FlatUpdate<float> kFlatUpdate<Update, float>{
    update_flat<Update, float, float>, update_flat<Update, float, BFloat16>, update_flat<Update, float, Float16>,
    Update::kStates, Update::kSquares};
template <class Update>
constexpr FlatUpdate<double> kFlatUpdate<Update, double>{update_flat<Update, double, double>, Update::kStates,
                                                         Update::kSquares};

}  // namespace
}  // namespace fusestep::FUSESTEP_ISA
