// ADADELTA (Zeiler, arXiv:1212.5701), with torch's rate.
#pragma once

#include "math/hd.h"
#include "math/optim/l2.h"
#include "math/optim/options.h"
#include "math/typelist.h"

namespace fusestep {

template <class T>
struct AdadeltaCoefficients {
  T l2;
  T rho;
  T one_minus_rho;
  T eps;
  T minus_lr;
};

struct AdadeltaUpdate {
  static constexpr StateSet kStates = 0b011;
  static constexpr StateSet kSquares = 0b011;
  static constexpr StateSet kDifference = 0;
  template <class T>
  using Coefficients = AdadeltaCoefficients<T>;

  template <class T, class V>
  FUSESTEP_HD static void apply(const AdadeltaCoefficients<T>& c, V& param, V grad, V* state) {
    V& square_avg = state[0];
    V& acc_delta = state[1];
    grad = with_l2(c.l2, param, grad);
    square_avg = fma(c.one_minus_rho * grad, grad, c.rho * square_avg);
    const V delta = sqrt(acc_delta + c.eps) / sqrt(square_avg + c.eps) * grad;
    acc_delta = fma(c.one_minus_rho * delta, delta, c.rho * acc_delta);
    param = fma(c.minus_lr, delta, param);
  }
};

struct Adadelta {
  static constexpr const char* kName = "adadelta";
  static constexpr const char* kDoc = "ADADELTA (arXiv:1212.5701): the rate follows from the parameter's own past.";
  static constexpr const char* kStateNames[kMaxStates] = {"square_avgs", "acc_deltas", nullptr};
  using Variants = TypeList<AdadeltaUpdate>;

  struct Options {
    double lr = 1;
    double rho = 0.9;
    double eps = 1e-6;
    double weight_decay = 0;
    bool maximize = false;
  };

  template <class Self, class Visit>
  static void visit_options(Self& o, Visit&& visit) {
    visit("lr", o.lr, Range::not_negative, "learning rate");
    visit("rho", o.rho, Range::below_one, "decay rate of both averages");
    visit("eps", o.eps, Range::not_negative, "added under both roots");
    visit("weight_decay", o.weight_decay, Range::not_negative, "weight_decay * param is added to the gradient");
    visit("maximize", o.maximize, Range::finite, "ascend instead of descend");
  }
  static Conflict conflict(const Options&) { return {}; }
  static int variant(const Options&) { return 0; }

  template <class T>
  FUSESTEP_HD static AdadeltaCoefficients<T> prepare(const Options& o, double /*step*/) {
    return {static_cast<T>(o.weight_decay), static_cast<T>(o.rho), static_cast<T>(1 - o.rho), static_cast<T>(o.eps),
            static_cast<T>(-o.lr)};
  }
};

}  // namespace fusestep
