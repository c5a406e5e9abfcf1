// One slice of an optimizer step, for every update variant and pair of dtypes.
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/slice.h"

namespace fusestep::FUSESTEP_ISA {
namespace {

template <class Update, class T>
using CoefficientsOf = typename Update::template Coefficients<T>;

// One vector's worth, in place.
template <class Update, class T, class G>
FUSESTEP_HD void update_vector(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform, T* param,
                               const G* grad, T* const* state, std::int64_t i) {
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
template <class Update, class T, class G>
FUSESTEP_HD void update_tail(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform, T* param,
                             const G* grad, T* const* state, std::int64_t count) {
  constexpr int kWidth = Vec<T>::kWidth;
  T param_buffer[kWidth] = {};
  G grad_buffer[kWidth] = {};
  T state_buffer[kMaxStates][kWidth] = {};
  T* state_buffers[kMaxStates];
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  memcpy(param_buffer, param, bytes);
  memcpy(grad_buffer, grad, static_cast<std::size_t>(count) * sizeof(G));
  for (int k = 0; k < kMaxStates; ++k) {
    state_buffers[k] = state_buffer[k];
    if (uses(Update::kStates, k)) memcpy(state_buffer[k], state[k], bytes);
  }
  update_vector<Update, T, G>(c, transform, param_buffer, grad_buffer, state_buffers, 0);
  memcpy(param, param_buffer, bytes);
  for (int k = 0; k < kMaxStates; ++k) {
    if (uses(Update::kStates, k)) memcpy(state[k], state_buffer[k], bytes);
  }
}

template <class Update, class T, class G>
FUSESTEP_HD void update_flat(const CoefficientsOf<Update, T>& coefficients, const GradTransform<T>& transform_,
                             T* param, const G* grad, T* const* state, std::int64_t count) {
  // Copies: the compiler keeps them in registers only if no store to a tensor could reach them.
  const CoefficientsOf<Update, T> c = coefficients;
  const GradTransform<T> transform = transform_;
  constexpr int kWidth = Vec<T>::kWidth;
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(T));
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    __builtin_prefetch(param + i + kAhead, 1);
    __builtin_prefetch(grad + i + kAhead, 0);
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) __builtin_prefetch(state[k] + i + kAhead, 1);
    }
    update_vector<Update, T, G>(c, transform, param, grad, state, i);
  }
  if (i == count) return;
  T* rest[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) rest[k] = uses(Update::kStates, k) ? state[k] + i : nullptr;
  update_tail<Update, T, G>(c, transform, param + i, grad + i, rest, count - i);
}

template <class Update, class T, class G>
void update_strided(const CoefficientsOf<Update, T>& c, const GradTransform<T>& transform, const UpdateTensor& tensor,
                    std::int64_t first, std::int64_t count) {
  T param_buffer[kStridedBuffer];
  G grad_buffer[kStridedBuffer];
  T state_buffer[kMaxStates][kStridedBuffer];
  T* state_buffers[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) state_buffers[k] = state_buffer[k];

  StridedCursor cursor(*tensor.layout, first);
  while (count > 0) {
    const std::int64_t n = std::min({count, cursor.run(), kStridedBuffer});
    T* param = static_cast<T*>(tensor.operand[0]) + cursor.offset(0);
    const G* grad = static_cast<const G*>(tensor.operand[1]) + cursor.offset(1);
    T* state[kMaxStates];
    gather(param_buffer, param, cursor.step(0), n);
    gather(grad_buffer, grad, cursor.step(1), n);
    for (int k = 0; k < kMaxStates; ++k) {
      if (!uses(Update::kStates, k)) continue;
      state[k] = static_cast<T*>(tensor.operand[2 + k]) + cursor.offset(2 + k);
      gather(state_buffer[k], state[k], cursor.step(2 + k), n);
    }
    update_flat<Update, T, G>(c, transform, param_buffer, grad_buffer, state_buffers, n);
    scatter(param, cursor.step(0), param_buffer, n);
    for (int k = 0; k < kMaxStates; ++k) {
      if (uses(Update::kStates, k)) scatter(state[k], cursor.step(2 + k), state_buffer[k], n);
    }
    cursor.advance(n);
    count -= n;
  }
}

template <class Update, class T, class G>
void update_slice(const UpdateJob& job, std::int64_t slice) {
  const GradTransform<T> transform{static_cast<T>(job.transform.scale), static_cast<T>(job.transform.limit)};
  for_each_piece(job, slice, [&](const UpdateTensor& tensor, std::int64_t first, std::int64_t count) {
    const auto& c = *reinterpret_cast<const CoefficientsOf<Update, T>*>(job.coefficients + tensor.coefficients);
    if (tensor.layout != nullptr) {
      update_strided<Update, T, G>(c, transform, tensor, first, count);
      return;
    }
    T* state[kMaxStates];
    for (int k = 0; k < kMaxStates; ++k) {
      state[k] = uses(Update::kStates, k) ? static_cast<T*>(tensor.operand[2 + k]) + first : nullptr;
    }
    update_flat<Update, T, G>(c, transform, static_cast<T*>(tensor.operand[0]) + first,
                              static_cast<const G*>(tensor.operand[1]) + first, state, count);
  });
}

}  // namespace

void fill_updates(CpuKernels& kernels) {
  int variant = 0;
  for_each_type(UpdateVariants{}, [&]<class Update>(TypeList<Update>) {
    auto& row = kernels.update[variant++];
    row[static_cast<int>(DTypePair::f32_f32)] = update_slice<Update, float, float>;
    row[static_cast<int>(DTypePair::f32_bf16)] = update_slice<Update, float, BFloat16>;
    row[static_cast<int>(DTypePair::f32_f16)] = update_slice<Update, float, Float16>;
    row[static_cast<int>(DTypePair::f64_f64)] = update_slice<Update, double, double>;
  });
}

}  // namespace fusestep::FUSESTEP_ISA
