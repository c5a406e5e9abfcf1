// Stochastic gradient descent with momentum (Sutskever et al., ICML 2013) in two forms that differ once the rate
// changes:
//   torch:      velocity = momentum * velocity + grad;        param -= lr * velocity
//   classical:  velocity = momentum * velocity - lr * grad;   param += velocity
// and with Nesterov's look-ahead in either.
#pragma once

#include "math/hd.h"
#include "math/optim/l2.h"
#include "math/optim/options.h"
#include "math/typelist.h"

namespace fusestep {

template <class T>
struct SGDCoefficients {
  T l2;
  T momentum;
  T one_minus_dampening;
  T minus_lr;
  T minus_lr_dampened;  // -lr * (1 - dampening)
  bool first_step;      // torch's buffer starts as the gradient itself, undampened, whatever it held before
};

enum class Momentum { none, torch, classical };

template <Momentum kMomentum, bool kNesterov>
struct SGDUpdate {
  static constexpr StateSet kStates = kMomentum == Momentum::none ? 0 : 0b001;
  static constexpr StateSet kSquares = 0;
  static constexpr StateSet kDifference = 0;
  template <class T>
  using Coefficients = SGDCoefficients<T>;

  template <class T, class V>
  FUSESTEP_HD static void apply(const SGDCoefficients<T>& c, V& param, V grad, V* state) {
    grad = with_l2(c.l2, param, grad);
    if constexpr (kMomentum == Momentum::none) {
      param = fma(c.minus_lr, grad, param);
    } else if constexpr (kMomentum == Momentum::torch) {
      V& buffer = state[0];
      buffer = c.first_step ? grad : fma(c.momentum, buffer, c.one_minus_dampening * grad);
      const V direction = kNesterov ? fma(c.momentum, buffer, grad) : buffer;
      param = fma(c.minus_lr, direction, param);
    } else {
      V& velocity = state[0];
      velocity = fma(c.momentum, velocity, c.minus_lr_dampened * grad);
      param = param + (kNesterov ? fma(c.momentum, velocity, c.minus_lr * grad) : velocity);
    }
  }
};

struct SGD {
  static constexpr const char* kName = "sgd";
  static constexpr const char* kDoc =
      "Stochastic gradient descent with momentum, in torch's form or the classical one.";
  static constexpr const char* kStateNames[kMaxStates] = {"momentum_buffers", nullptr, nullptr};
  using Variants =
      TypeList<SGDUpdate<Momentum::none, false>, SGDUpdate<Momentum::torch, false>, SGDUpdate<Momentum::torch, true>,
               SGDUpdate<Momentum::classical, false>, SGDUpdate<Momentum::classical, true>>;

  struct Options {
    double lr = 1e-3;
    double momentum = 0;
    double dampening = 0;
    double weight_decay = 0;
    bool nesterov = false;
    bool maximize = false;
    Choice form{0, {"torch", "classical"}};
  };

  template <class Self, class Visit>
  static void visit_options(Self& o, Visit&& visit) {
    visit("lr", o.lr, Range::not_negative, "learning rate");
    visit("momentum", o.momentum, Range::not_negative, "if not 0, needs momentum_buffers");
    visit("dampening", o.dampening, Range::finite, "the gradient enters the buffer times (1 - dampening)");
    visit("weight_decay", o.weight_decay, Range::not_negative, "weight_decay * param is added to the gradient");
    visit("nesterov", o.nesterov, Range::finite, "look ahead along the velocity: needs momentum and no dampening");
    visit("maximize", o.maximize, Range::finite, "ascend instead of descend");
    visit("form", o.form, Range::finite,
          "\"torch\": the rate multiplies the velocity; \"classical\": the rate enters the velocity");
  }
  static Conflict conflict(const Options& o) {
    constexpr const char* kNeeds = "momentum > 0 and dampening == 0 where it is True";
    if (o.nesterov && o.momentum == 0) return {"nesterov", kNeeds, "momentum == 0"};
    if (o.nesterov && o.dampening != 0) return {"nesterov", kNeeds, "another dampening"};
    return {};
  }
  static int variant(const Options& o) {
    if (o.momentum == 0) return 0;
    return 1 + 2 * o.form.value + (o.nesterov ? 1 : 0);
  }

  template <class T>
  FUSESTEP_HD static SGDCoefficients<T> prepare(const Options& o, double step) {
    return {static_cast<T>(o.weight_decay),
            static_cast<T>(o.momentum),
            static_cast<T>(1 - o.dampening),
            static_cast<T>(-o.lr),
            static_cast<T>(-o.lr * (1 - o.dampening)),
            step == 1};
  }
};

}  // namespace fusestep
