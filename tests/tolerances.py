"""Every tolerance of the tests, derived. None is chosen by hand.

Optimizers. `Bound` is a number that carries a bound of its rounding error (running error analysis: Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3). Running the formulas of cases.py over
it gives, element by element, how far the kernels may be from the exact result: every rounding of the contract
is counted at the size of the number that is rounded, every later operation carries the errors on.
Cancellation (centered RMSProp), small denominators and the errors of the earlier steps are so counted where
they happen, and nowhere else.

Norms. The bound of a sum is the greatest number of roundings that one term passes through.

Units: u = half an ulp of 1 = eps / 2, the greatest relative error of one rounding to nearest.
"""

from __future__ import annotations

import math

import numpy as np
from cases import SLICE

U = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Half the smallest subnormal: the greatest error of one rounding below the normal numbers.
UNDERFLOW = {"float64": 2.0**-1075, "float32": 2.0**-150}
# The arithmetic in which values and bounds are worked out. Its own roundings are 2**-29 and 2**-11 of those
# judged; some twenty a step, over some ten steps: SLACK covers them.
FINER = {"float32": np.float64, "float64": np.longdouble}
SLACK = 1 + 2.0**-3


class Bound:
    """A value, and a bound of |what a program in `dtype` computes - value|."""

    __array_ufunc__ = None  # array * bound: NumPy leaves it to __rmul__

    def __init__(self, value, error, dtype):
        self.value, self.error, self.dtype = value, error, dtype

    def __neg__(self):
        return Bound(-self.value, self.error, self.dtype)

    def __add__(self, other):
        other = self._lift(other)
        return rounded(self.value + other.value, self.error + other.error, self.dtype)

    def __sub__(self, other):
        return self + -self._lift(other)

    def __rsub__(self, other):
        return self._lift(other) - self

    def __mul__(self, other):
        other = self._lift(other)
        return rounded(self.value * other.value, product_error(self, other), self.dtype)

    def __truediv__(self, other):
        other = self._lift(other)
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = self.value / other.value
            smallest = np.abs(other.value) - other.error
            error = (self.error + np.abs(quotient) * other.error) / smallest
        return rounded(quotient, np.where(smallest > 0, error, np.inf), self.dtype)

    def __rtruediv__(self, other):
        return self._lift(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def _lift(self, other):
        return other if isinstance(other, Bound) else Bound(other, 0.0, self.dtype)


def rounded(value, error, dtype, roundings=1):
    """A result that lay within `error` of `value` before it was rounded."""
    return Bound(value, error + roundings * (U[dtype] * (np.abs(value) + error) + UNDERFLOW[dtype]), dtype)


def product_error(a, b):
    return np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error


class Bounded:
    """The arithmetic of Bound for exact.step, for a parameter of `dtype`.

    fused=False counts two roundings in a multiply-add: for torch, which may or may not fuse.
    """

    def __init__(self, dtype, fused=True):
        self.dtype, self.fused, self.finer = dtype, fused, FINER[dtype]

    def array(self, values):
        """Exactly known data."""
        return None if values is None else Bound(np.asarray(values, self.finer), 0.0, self.dtype)

    def number(self, value, error=0.0):
        """A hyperparameter: double, like all that a step prepares from it."""
        return Bound(self.finer(value), error, "float64")

    def power(self, base, exponent):
        # The pow of a libm is within one ulp: as good as two roundings.
        return rounded(base.value**exponent, 0.0, base.dtype, roundings=2)

    def round(self, number):
        return rounded(number.value, number.error, self.dtype)

    def fma(self, a, b, c):
        return (Bound(a.value * b.value, product_error(a, b), self.dtype) if self.fused else a * b) + c

    def sqrt(self, x):
        root = np.sqrt(x.value)
        below = root - np.sqrt(np.maximum(x.value - x.error, 0))
        above = np.sqrt(x.value + x.error) - root
        return rounded(root, np.maximum(below, above), x.dtype)

    root = sqrt

    def maximum(self, a, b):
        return Bound(np.maximum(a.value, b.value), np.maximum(a.error, b.error), self.dtype)

    def clip(self, x, low, high):
        return Bound(np.clip(x.value, low.value, high.value), np.maximum(x.error, high.error), self.dtype)


def bounds(outputs):
    """The tolerances of the results of exact.step: arrays, None where a state is not in use."""
    return [None if out is None else np.asarray(SLACK * out.error, np.float64) for out in outputs]


# --- norms --------------------------------------------------------------------------------------------------
LANES = 32


def norm_error(numel, norm_type=2.0):
    """Relative error of a norm of `numel` elements, summed in double by slices of SLICE and LANES lanes.

    All terms are positive, so the relative error is at most the number of roundings that one term passes
    through: the additions in its lane, those that join the lanes, and those that join the slices, one after
    another at worst. The root halves it; one more for the root, one for grad_scale.
    """
    if norm_type == math.inf:
        return 0.0
    roundings = SLICE // LANES + LANES + math.ceil(numel / SLICE)
    return (roundings / 2 + 2) * U["float64"] if norm_type == 2 else (roundings + 1) * U["float64"]


def reference_norm_error(numel, tensors):
    """The same of reference.grad_norm: NumPy sums pairwise (blocks of 128, 8 lanes), then tensor by tensor.

    Scaling by the peak, the square, the root and the product with the peak are six roundings more.
    """
    return (128 // 8 + 8 + math.ceil(math.log2(max(numel, 2))) + tensors + 6) * U["float64"]
