"""What the optimizers must give, bit for bit: IEEE arithmetic with the roundings where the kernels have them.

The formulas stand in cases.py, written over an arithmetic. `Ieee` is that of one dtype with a correctly
rounded fma, which NumPy lacks and this file builds. In tolerances.py the same formulas run over numbers that
carry a bound of their rounding error.
"""

from __future__ import annotations

import math

import numpy as np
from cases import BY_NAME


# --- fma, correctly rounded ---------------------------------------------------------------------------------
def two_sum(a, b):
    """(s, e) with s = a + b rounded and s + e = a + b exactly (Knuth), short of overflow."""
    s = a + b
    b_part = s - a
    return s, (a - (s - b_part)) + (b - b_part)


def two_product(a, b):
    """(p, e): p = a * b rounded, p + e = a * b exactly; float64, short of under- and overflow (Dekker)."""

    def split(x):  # into halves of 26 bits, the products of which are exact
        big = x * 134217729.0  # 2**27 + 1
        high = big - (big - x)
        return high, x - high

    p = a * b
    a_high, a_low = split(a)
    b_high, b_low = split(b)
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def add_to_odd(a, b):
    """a + b in float64 rounded to odd: an inexact sum becomes the neighbour whose last bit is 1.

    Rounding such a sum once more, to two bits less or fewer, gives what one rounding of the exact sum gives
    (Boldo and Melquiond 2008); rounding the nearest double once more may not.
    """
    s, e = two_sum(a, b)
    s, e = np.atleast_1d(np.asarray(s, np.float64)), np.atleast_1d(np.asarray(e, np.float64))
    even = (s.view(np.int64) & 1) == 0
    inexact = np.isfinite(e) & (e != 0)
    odd = np.nextafter(s, np.where(e > 0, np.inf, -np.inf))
    return np.where(inexact & even, odd, s).reshape(np.shape(a + b))


def fma(a, b, c):
    """a * b + c rounded once: float32 arrays, or float64 arrays (short of under- and overflow)."""
    dtype = np.result_type(a, b, c)
    with np.errstate(all="ignore"):
        if dtype == np.float32:
            # 24 + 24 bits: the product is exact in float64.
            product = np.multiply(a, b, dtype=np.float64)
            return add_to_odd(product, np.asarray(c, np.float64)).astype(np.float32)
        # Boldo and Melquiond 2008, figure 7: the three parts u_low, c, u_high are added, the small ones to
        # odd.
        u_high, u_low = two_product(np.asarray(a, np.float64), np.asarray(b, np.float64))
        t_high, t_low = two_sum(np.asarray(c, np.float64), u_low)
        v_high, v_low = two_sum(u_high, t_high)
        return v_high + add_to_odd(t_low, v_low)


class Ieee:
    """Arithmetic on NumPy arrays of one dtype; NumPy rounds + - * / correctly already."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)

    # A step's coefficients are prepared in double: `number` makes one, `round` gives it the dtype.
    number = staticmethod(float)
    power = staticmethod(math.pow)
    root = staticmethod(math.sqrt)

    def round(self, number):
        return self.dtype.type(number)

    fma = staticmethod(fma)
    sqrt = staticmethod(np.sqrt)
    maximum = staticmethod(np.maximum)
    clip = staticmethod(np.clip)


# --- a step -------------------------------------------------------------------------------------------------
def gradient(A, grad, scale, max_grad_value=None):
    """The gradient that the update sees; scale = +-clip coefficient / grad_scale, in double."""
    g = grad * A.round(scale)
    if max_grad_value is not None:
        limit = A.round(A.number(max_grad_value))
        g = A.clip(g, -limit, limit)
    return g


def step(A, name, param, grad, states, number, options, *, scale=None, max_grad_value=None):
    """(param, *states) after one step of the optimizer `name`; `states` in the order of its row.

    `scale`, a number of A, is the clip coefficient over grad_scale; the sign of `maximize` is put on here.
    """
    options = dict(options)
    scale = A.number(1.0) if scale is None else scale
    scale = -scale if options.pop("maximize", False) else scale
    g = gradient(A, grad, scale, max_grad_value)
    return BY_NAME[name].update(A, param, g, *states, number, **options)
