// The only list of optimizers. A new one is its functor header, one line here, its reference, its torch class and its
// row in tests/support/cases.py; bindings, kernels for every instruction set and fusestep.ops follow from this list.
#pragma once

#include "math/optim/adagrad.h"
#include "math/optim/adam.h"
#include "math/optim/rmsprop.h"
#include "math/optim/sgd.h"
#include "math/typelist.h"

namespace fusestep {

using Optimizers = TypeList<AdamW, Adam, RMSProp, AdaGrad, SGD>;

namespace detail {
template <class... Os>
concat<typename Os::Variants...> variants_of(TypeList<Os...>);
}  // namespace detail

// Every update kernel there is: each backend has one entry for each, in this order.
using UpdateVariants = decltype(detail::variants_of(Optimizers{}));

}  // namespace fusestep
