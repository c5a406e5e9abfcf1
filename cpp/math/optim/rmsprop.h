// RMSProp (Hinton, lecture 6e, 2012), with torch's options: centered (Graves, arXiv:1308.0850) and momentum. The small
// constant stands outside the root: lr / (eps + sqrt(square_avg)).
#pragma once

#include "math/hd.h"
#include "math/optim/l2.h"
#include "math/optim/options.h"
#include "math/typelist.h"

namespace fusestep {

template <class T>
struct RMSPropCoefficients {
  T l2;
  T alpha;
  T one_minus_alpha;
  T eps;
  T momentum;
  T minus_lr;
};

template <bool kMomentum, bool kCentered>
struct RMSPropUpdate {
  static constexpr StateSet kStates = 0b001 | (kMomentum ? 0b010 : 0) | (kCentered ? 0b100 : 0);
  static constexpr StateSet kSquares = 0b001;
  static constexpr StateSet kDifference = kCentered ? 0b101 : 0;
  template <class T>
  using Coefficients = RMSPropCoefficients<T>;

  template <class T, class V>
  FUSESTEP_HD static void apply(const RMSPropCoefficients<T>& c, V& param, V grad, V* state) {
    V& square_avg = state[0];
    grad = with_l2(c.l2, param, grad);
    square_avg = fma(c.one_minus_alpha * grad, grad, c.alpha * square_avg);
    V variance = square_avg;
    if constexpr (kCentered) {
      V& grad_avg = state[2];
      grad_avg = fma(c.one_minus_alpha, grad - grad_avg, grad_avg);
      // Rounding can leave a variance of a constant gradient just below zero: its root would be NaN.
      variance = max_number(V(T(0)), fma(-grad_avg, grad_avg, square_avg));
    }
    V update = grad / (sqrt(variance) + c.eps);
    if constexpr (kMomentum) {
      V& momentum_buffer = state[1];
      momentum_buffer = fma(c.momentum, momentum_buffer, update);
      update = momentum_buffer;
    }
    param = fma(c.minus_lr, update, param);
  }
};

struct RMSProp {
  static constexpr const char* kName = "rmsprop";
  static constexpr const char* kDoc =
      "RMSProp (Hinton 2012): the rate is divided by a running root mean square of the gradient; eps outside the root.";
  static constexpr const char* kStateNames[kMaxStates] = {"square_avgs", "momentum_buffers", "grad_avgs"};
  using Variants = TypeList<RMSPropUpdate<false, false>, RMSPropUpdate<false, true>, RMSPropUpdate<true, false>,
                            RMSPropUpdate<true, true>>;

  struct Options {
    double lr = 1e-2;
    double alpha = 0.99;
    double eps = 1e-8;
    double weight_decay = 0;
    double momentum = 0;
    bool centered = false;
    bool maximize = false;
  };

  template <class Self, class Visit>
  static void visit_options(Self& o, Visit&& visit) {
    visit("lr", o.lr, Range::not_negative, "learning rate");
    visit("alpha", o.alpha, Range::not_negative, "decay rate of square_avg (rho in the seed's formula)");
    visit("eps", o.eps, Range::not_negative, "added to the root");
    visit("weight_decay", o.weight_decay, Range::not_negative, "weight_decay * param is added to the gradient");
    visit("momentum", o.momentum, Range::not_negative, "if not 0, needs momentum_buffers");
    visit("centered", o.centered, Range::finite, "divide by the standard deviation instead: needs grad_avgs");
    visit("maximize", o.maximize, Range::finite, "ascend instead of descend");
  }
  static Conflict conflict(const Options&) { return {}; }
  static int variant(const Options& o) { return (o.momentum != 0 ? 2 : 0) + (o.centered ? 1 : 0); }

  template <class T>
  FUSESTEP_HD static RMSPropCoefficients<T> prepare(const Options& o, double /*step*/) {
    return {static_cast<T>(o.weight_decay), static_cast<T>(o.alpha),    static_cast<T>(1 - o.alpha),
            static_cast<T>(o.eps),          static_cast<T>(o.momentum), static_cast<T>(-o.lr)};
  }
};

}  // namespace fusestep
