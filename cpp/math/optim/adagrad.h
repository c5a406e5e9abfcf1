// AdaGrad (Duchi et al., JMLR 12, 2011), with torch's decay of the rate. An initial accumulator value is the caller's
// to write into state_sums.
#pragma once

#include "math/hd.h"
#include "math/optim/l2.h"
#include "math/optim/options.h"
#include "math/typelist.h"

namespace fusestep {

template <class T>
struct AdaGradCoefficients {
  T l2;
  T eps;
  T minus_decayed_lr;  // -lr / (1 + (step - 1) * lr_decay)
};

struct AdaGradUpdate {
  static constexpr StateSet kStates = 0b001;
  static constexpr StateSet kSquares = 0b001;
  static constexpr StateSet kDifference = 0;
  template <class T>
  using Coefficients = AdaGradCoefficients<T>;

  template <class T, class V>
  FUSESTEP_HD static void apply(const AdaGradCoefficients<T>& c, V& param, V grad, V* state) {
    V& state_sum = state[0];
    grad = with_l2(c.l2, param, grad);
    state_sum = fma(grad, grad, state_sum);
    param = fma(c.minus_decayed_lr, grad / (sqrt(state_sum) + c.eps), param);
  }
};

struct AdaGrad {
  static constexpr const char* kName = "adagrad";
  static constexpr const char* kDoc =
      "AdaGrad (JMLR 12, 2011): the rate is divided by the root of the sum of all squared gradients so far.";
  static constexpr const char* kStateNames[kMaxStates] = {"state_sums", nullptr, nullptr};
  using Variants = TypeList<AdaGradUpdate>;

  struct Options {
    double lr = 1e-2;
    double lr_decay = 0;
    double weight_decay = 0;
    double eps = 1e-10;
    bool maximize = false;
  };

  template <class Self, class Visit>
  static void visit_options(Self& o, Visit&& visit) {
    visit("lr", o.lr, Range::not_negative, "learning rate");
    visit("lr_decay", o.lr_decay, Range::not_negative, "the rate of step t is lr / (1 + (t - 1) * lr_decay)");
    visit("weight_decay", o.weight_decay, Range::not_negative, "weight_decay * param is added to the gradient");
    visit("eps", o.eps, Range::not_negative, "added to the root");
    visit("maximize", o.maximize, Range::finite, "ascend instead of descend");
  }
  static Conflict conflict(const Options&) { return {}; }
  static int variant(const Options&) { return 0; }

  template <class T>
  FUSESTEP_HD static AdaGradCoefficients<T> prepare(const Options& o, double step) {
    return {static_cast<T>(o.weight_decay), static_cast<T>(o.eps),
            static_cast<T>(-o.lr / (1 + (step - 1) * o.lr_decay))};
  }
};

}  // namespace fusestep
