// Adam (Kingma & Ba, arXiv:1412.6980) with AMSGrad (Reddi et al., arXiv:1904.09237), and AdamW (Loshchilov & Hutter,
// arXiv:1711.05101). They differ in one place: Adam adds weight_decay * param to the gradient before the moments,
// AdamW shrinks the parameter itself.
#pragma once

#include <cmath>

#include "math/hd.h"
#include "math/optim/l2.h"
#include "math/optim/options.h"
#include "math/typelist.h"

namespace fusestep {

// What one step needs of the hyperparameters, computed in double and rounded once to the parameter's type T.
template <class T>
struct AdamCoefficients {
  T l2;      // added to the gradient as l2 * param (Adam)
  T shrink;  // multiplies the parameter (AdamW)
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T inverse_sqrt_correction;  // 1 / sqrt(1 - beta2^step)
  T eps;
  T minus_step_size;  // -lr / (1 - beta1^step)
};

template <bool kDecoupled, bool kAmsgrad>
struct AdamUpdate {
  static constexpr StateSet kStates = kAmsgrad ? 0b111 : 0b011;
  static constexpr StateSet kSquares = 0b110;
  static constexpr StateSet kDifference = 0;
  template <class T>
  using Coefficients = AdamCoefficients<T>;

  template <class T, class V>
  FUSESTEP_HD static void apply(const AdamCoefficients<T>& c, V& param, V grad, V* state) {
    V& exp_avg = state[0];
    V& exp_avg_sq = state[1];
    if constexpr (kDecoupled) {
      param = param * c.shrink;
    } else {
      grad = with_l2(c.l2, param, grad);
    }
    exp_avg = fma(c.one_minus_beta1, grad - exp_avg, exp_avg);
    exp_avg_sq = fma(c.one_minus_beta2 * grad, grad, c.beta2 * exp_avg_sq);
    V second_moment = exp_avg_sq;
    if constexpr (kAmsgrad) {
      state[2] = max(state[2], exp_avg_sq);
      second_moment = state[2];
    }
    const V denominator = fma(sqrt(second_moment), V(c.inverse_sqrt_correction), V(c.eps));
    param = fma(c.minus_step_size, exp_avg / denominator, param);
  }
};

template <class T, class Options>
FUSESTEP_HD AdamCoefficients<T> adam_coefficients(const Options& o, double step, double l2, double shrink) {
  const double correction1 = 1 - std::pow(o.betas.beta1, step);
  const double correction2 = 1 - std::pow(o.betas.beta2, step);
  return {static_cast<T>(l2),
          static_cast<T>(shrink),
          static_cast<T>(1 - o.betas.beta1),
          static_cast<T>(o.betas.beta2),
          static_cast<T>(1 - o.betas.beta2),
          static_cast<T>(1 / std::sqrt(correction2)),
          static_cast<T>(o.eps),
          static_cast<T>(-o.lr / correction1)};
}

struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr const char* kDoc =
      "Adam (arXiv:1412.6980), weight decay as L2: it is added to the gradient before the moments.";
  static constexpr const char* kStateNames[kMaxStates] = {"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"};
  using Variants = TypeList<AdamUpdate<false, false>, AdamUpdate<false, true>>;

  struct Options {
    double lr = 1e-3;
    Betas betas{0.9, 0.999};
    double eps = 1e-8;
    double weight_decay = 0;
    bool amsgrad = false;
    bool maximize = false;
  };

  template <class Self, class Visit>
  static void visit_options(Self& o, Visit&& visit) {
    visit("lr", o.lr, Range::not_negative, "learning rate");
    visit("betas", o.betas, Range::below_one, "decay rates of exp_avg and of exp_avg_sq");
    visit("eps", o.eps, Range::not_negative, "added to the square root of the second moment");
    visit("weight_decay", o.weight_decay, Range::not_negative, "weight_decay * param is added to the gradient");
    visit("amsgrad", o.amsgrad, Range::finite, "divide by the greatest second moment so far: needs max_exp_avg_sqs");
    visit("maximize", o.maximize, Range::finite, "ascend instead of descend");
  }
  static Conflict conflict(const Options&) { return {}; }
  static int variant(const Options& o) { return o.amsgrad ? 1 : 0; }

  template <class T>
  FUSESTEP_HD static AdamCoefficients<T> prepare(const Options& o, double step) {
    return adam_coefficients<T>(o, step, o.weight_decay, 1);
  }
};

struct AdamW {
  static constexpr const char* kName = "adamw";
  static constexpr const char* kDoc =
      "AdamW (arXiv:1711.05101): Adam with decoupled weight decay, the parameter itself is shrunk.";
  static constexpr const char* kStateNames[kMaxStates] = {"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"};
  using Variants = TypeList<AdamUpdate<true, false>, AdamUpdate<true, true>>;

  struct Options {
    double lr = 1e-3;
    Betas betas{0.9, 0.999};
    double eps = 1e-8;
    double weight_decay = 1e-2;
    bool amsgrad = false;
    bool maximize = false;
    Choice decay{0, {"lr", "independent"}};
  };

  template <class Self, class Visit>
  static void visit_options(Self& o, Visit&& visit) {
    visit("lr", o.lr, Range::not_negative, "learning rate");
    visit("betas", o.betas, Range::below_one, "decay rates of exp_avg and of exp_avg_sq");
    visit("eps", o.eps, Range::not_negative, "added to the square root of the second moment");
    visit("weight_decay", o.weight_decay, Range::not_negative, "how much the parameter shrinks each step");
    visit("amsgrad", o.amsgrad, Range::finite, "divide by the greatest second moment so far: needs max_exp_avg_sqs");
    visit("maximize", o.maximize, Range::finite, "ascend instead of descend");
    visit("decay", o.decay, Range::finite,
          "\"lr\": param shrinks by lr * weight_decay (torch); \"independent\": by weight_decay alone (the paper)");
  }
  static Conflict conflict(const Options&) { return {}; }
  static int variant(const Options& o) { return o.amsgrad ? 1 : 0; }

  template <class T>
  FUSESTEP_HD static AdamCoefficients<T> prepare(const Options& o, double step) {
    const double rate = o.decay.value == 0 ? o.lr * o.weight_decay : o.weight_decay;
    return adam_coefficients<T>(o, step, 0, 1 - rate);
  }
};

}  // namespace fusestep
