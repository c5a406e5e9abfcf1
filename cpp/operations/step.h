// One step of an optimizer over any number of groups of tensors: norm, clip, update. Everything is checked while the
// plan is made; running it cannot fail half-way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "backend/backend.h"
#include "operations/grads.h"
#include "tensors/check.h"
#include "tensors/layout.h"
#include "tensors/overlap.h"

namespace fusestep {

// One parameter of a group.
struct StepTensor {
  TensorView param;
  TensorView grad;
  TensorView states[kMaxStates];  // those that the variant uses
  TensorView absmax[kMaxStates];  // of those that are of uint8
  TensorView companion;           // the compensation or the float32 copy, where the rounding has one
  TensorView step_count;          // data == nullptr: the caller counts
  double step = 1;                // 1-based number of this step
  std::uint32_t number = 0;       // of the parameter among all, for stochastic rounding
  ShardPositions positions;       // for stochastic rounding
};

// How the parameters of a group are rounded.
struct GroupRounding {
  Rounding rounding = Rounding::nearest;
  std::uint64_t seed = 0;  // of stochastic rounding
};

class StepPlan {
 public:
  // Of one parameter: itself, its gradient, its states with their scales, its companion, its step count.
  static constexpr std::size_t kMaxArrays = 4 + 2 * kMaxStates;

  StepPlan(const char* operation, const Clipping& clipping) : operation_(operation) {
    job_.operation = operation;
    job_.clipping = clipping;
  }

  // Adds parameter `index` of group `group` (-1: the only group) under the optimizer O. Refuses what cannot be done.
  // `options` and `rounding` are those of the group, the same objects for all its parameters.
  template <class O>
  void add(const typename O::Options& options, const GroupRounding& rounding, const StepTensor& tensor,
           std::int64_t group, std::int64_t index) {
    constexpr int kFirstVariant = first_variant<O>();
    const int variant = O::variant(options);
    const StateSet states = states_of<O>(options);
    check(tensor, rounding.rounding, O::kStateNames, states, group, index);
    check_codes(tensor, rounding.rounding, O::kStateNames, states, differences_of(typename O::Variants{}, variant),
                group, index);
    if (job_.deferred) {
      defer_coefficients(tensor, sizeof(UpdateHeader) + sizeof(decltype(O::template prepare<double>(options, 1))),
                         rounding.seed, group);
    }
    if (tensor.param.numel == 0) return;
    if (!job_.deferred && !reuses_coefficients(tensor, &options)) {
      if (arithmetic_of(tensor.param.dtype) == Arithmetic::float32) {
        push_coefficients(O::template prepare<float>(options, tensor.step), tensor.step, rounding.seed);
      } else {
        push_coefficients(O::template prepare<double>(options, tensor.step), tensor.step, rounding.seed);
      }
    }
    push(kFirstVariant + variant, options.maximize, rounding.rounding, tensor, states, group, index);
  }

  // Makes this a deferred step of the optimizer O. To be called before the first add; so is defer_group, in the order
  // of the groups.
  template <class O>
  void defer(const DeferredStep& scalars) {
    job_.deferred = scalars;
    job_.deferred->optimizer = position_of<O>(Optimizers{});
    check_can_defer();
  }
  template <class O>
  void defer_group(const typename O::Options& options, const TensorView& lr) {
    // Member by member: the bytes of the padding stay 0, so that equal options are equal bytes and need no new upload.
    std::vector<unsigned char>& all = job_.deferred->options;
    const std::size_t begin = all.size();
    all.resize(begin + sizeof options);
    O::visit_options(options, [&](const char* /*name*/, const auto& option, Range /*range*/, const char* /*doc*/) {
      const auto offset =
          reinterpret_cast<const unsigned char*>(&option) - reinterpret_cast<const unsigned char*>(&options);
      copy_option(all.data() + begin + offset, option);
    });
    job_.deferred->lr.push_back(lr);
  }

  // The norm's sum is added up from these parts (of the gradients of several processes, before the root) in place of
  // the gradients. To be called before the first add.
  void take_totals(const TensorView& totals) { job_.totals = totals; }

  // Makes room for the arrays of so many more parameters. Vectors that grow by doubling would need three times as much.
  void reserve(std::size_t params) { overlaps_.reserve(params * kMaxArrays); }

  // What can only be said of all together: memory that is written and reached a second time is refused, and scalars on
  // another device. To be called after the last add.
  void check_together();

  // Where all parameters are: the CPU where there are none.
  Device device() const { return device_; }

  // On a stream of that device. On the CPU it throws NonfiniteNorm and nothing else.
  StepResult run(const Stream& stream);

  // The states that the options ask for.
  template <class O>
  static StateSet states_of(const typename O::Options& options) {
    return states_of_variant(typename O::Variants{}, O::variant(options));
  }

 private:
  template <class Option>
  static void copy_option(unsigned char* to, const Option& option) {
    static_assert(!std::is_class_v<Option> || std::is_same_v<Option, Betas>, "has it padding?");
    std::memcpy(to, &option, sizeof option);
  }
  static void copy_option(unsigned char* to, const Choice& choice) {
    std::memcpy(to, &choice.value, sizeof choice.value);
  }

  template <class O>
  static constexpr int first_variant() {
    int first = 0;
    bool found = false;
    for_each_type(Optimizers{}, [&]<class Other>(TypeList<Other>) {
      found = found || __is_same(O, Other);
      if (!found) first += Other::Variants::size;
    });
    return first;
  }

  template <class... Variants>
  static StateSet states_of_variant(TypeList<Variants...>, int variant) {
    constexpr StateSet states[] = {Variants::kStates...};
    return states[variant];
  }

  template <class... Variants>
  static StateSet differences_of(TypeList<Variants...>, int variant) {
    constexpr StateSet states[] = {Variants::kDifference...};
    return states[variant];
  }

  template <class O, class... Os>
  static int position_of(TypeList<Os...>) {
    int position = -1;
    int i = 0;
    ((position = __is_same(O, Os) ? i : position, ++i), ...);
    return position;
  }

  template <class C>
  void push_coefficients(const C& coefficients, double step, std::uint64_t seed) {
    const std::size_t rounded = (sizeof(UpdateHeader) + sizeof(C) + 15) / 16 * 16;
    last_coefficients_ = job_.coefficients.size();
    job_.coefficients.resize(job_.coefficients.size() + rounded);
    const UpdateHeader header{seed, static_cast<std::uint32_t>(static_cast<std::int64_t>(step))};
    std::memcpy(job_.coefficients.data() + last_coefficients_, &header, sizeof header);
    std::memcpy(job_.coefficients.data() + last_coefficients_ + sizeof header, &coefficients, sizeof(C));
  }

  void check(const StepTensor& tensor, Rounding rounding, const char* const* state_names, StateSet states,
             std::int64_t group, std::int64_t index);
  void check_codes(const StepTensor& tensor, Rounding rounding, const char* const* state_names, StateSet states,
                   StateSet differences, std::int64_t group, std::int64_t index);
  void check_companion(const StepTensor& tensor, Rounding rounding, std::int64_t group, std::int64_t index);
  void check_can_defer();
  void defer_coefficients(const StepTensor& tensor, std::size_t bytes, std::uint64_t seed, std::int64_t group);
  bool reuses_coefficients(const StepTensor& tensor, const void* options);
  void push(int variant, bool maximize, Rounding rounding, const StepTensor& tensor, StateSet states,
            std::int64_t group, std::int64_t index);
  UpdateBatch& batch_for(int variant, Arithmetic arithmetic, bool maximize, bool in_blocks);

  const char* operation_;
  const Backend* backend_ = nullptr;
  Device device_{kDeviceCpu, 0};
  StepJob job_;
  LayoutStore layouts_;
  GradList grads_;  // filled where the norm or rewriting needs it
  OverlapCheck overlaps_;

  std::size_t last_coefficients_ = 0;
  const void* last_options_ = nullptr;
  double last_step_ = 0;
  Arithmetic last_arithmetic_ = Arithmetic::float32;
};

}  // namespace fusestep
