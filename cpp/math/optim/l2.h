// The L2 penalty that Adam, RMSProp, AdaGrad and SGD share.
#pragma once

#include "math/hd.h"

namespace fusestep {

// The gradient of loss + weight_decay / 2 * |param|^2. Without a penalty it is the gradient as it came: 0 * param would
// turn an infinite parameter into a NaN gradient.
template <class T, class V>
FUSESTEP_HD V with_l2(T weight_decay, V param, V grad) {
  return weight_decay != 0 ? fma(weight_decay, param, grad) : grad;
}

}  // namespace fusestep
