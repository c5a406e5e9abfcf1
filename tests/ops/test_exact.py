"""The yardsticks themselves: the emulated fma against rational arithmetic, and the bounds against reality."""

from __future__ import annotations

from fractions import Fraction

import cases
import exact
import numpy as np
import pytest
import tolerances


def nearest(value: Fraction, dtype) -> np.floating:
    """The number of `dtype` nearest to `value`, ties to even, by trying the neighbours."""
    guess = dtype(float(value))
    candidates = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    integer = np.int32 if dtype is np.float32 else np.int64
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(integer)) & 1))


def hard_triples(dtype, rng, count=400):
    """Operands whose fma is close to a tie between two numbers, to a double rounding, or cancels."""
    digits = np.finfo(dtype).nmant
    a = rng.standard_normal(count).astype(dtype)
    b = rng.standard_normal(count).astype(dtype)
    c = rng.standard_normal(count).astype(dtype)
    c[::5] = -(a * b)[::5]  # cancels all but the rounding error of the product
    c[1::5] = (a * b)[1::5] * dtype(2.0**digits)  # the product is about half an ulp of c
    # a * b = half an ulp of c, less a part that double does not see beside c: a tie only after rounding to
    # double
    fraction = dtype(2.0) ** -rng.integers(15, digits, a[2::5].size).astype(dtype)
    a[2::5] = 1 + fraction
    b[2::5] = dtype(2.0) ** dtype(-digits - 1) * (1 - fraction)
    c[2::5] = 1 + dtype(2.0) ** dtype(-digits)
    b[3::5] = dtype(2.0) ** rng.integers(-3 * digits // 2, 2, b[3::5].size).astype(dtype)
    return a, b, c


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_is_correctly_rounded(dtype, rng):
    a, b, c = hard_triples(dtype, rng)
    got = exact.fma(a, b, c)
    assert got.dtype == dtype
    want = [
        nearest(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), dtype)
        for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(got, np.array(want))
    # The triples are hard enough to tell an fma from two roundings and from one rounding in double.
    assert np.any(got != a * b + c)
    if dtype is np.float32:
        assert np.any(got != (a.astype(np.float64) * b + c).astype(np.float32))


def test_fma_of_subnormal_infinite_and_nan():
    tiny = np.float32(2.0**-149)
    a = np.array([tiny, np.inf, np.nan, 1.0, 3e38], np.float32)
    b = np.array([0.5, 1.0, 1.0, 1.0, 3e38], np.float32)
    c = np.array([tiny, 1.0, 1.0, -np.inf, 0.0], np.float32)
    # tiny / 2 + tiny = 1.5 tiny: a tie, to even
    np.testing.assert_array_equal(exact.fma(a, b, c), np.array([2 * tiny, np.inf, np.nan, -np.inf, np.inf], np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS)
def test_bounds_hold_and_are_tight(optimizer, options, dtype, rng):
    """What IEEE arithmetic gives lies within the bound, and the bound is a few ulps of what is added up."""
    shape = (4000,)
    param = rng.standard_normal(shape).astype(dtype)
    states = optimizer.initial_states(options, shape, dtype)
    options = optimizer.step_options(options)
    ieee, bounded = exact.Ieee(dtype), tolerances.Bounded(dtype)
    rounded = [param, *states]
    bound = [bounded.array(x) for x in rounded]
    for number in range(1, 5):
        before = rounded
        grad = rng.standard_normal(shape).astype(dtype)
        rounded = exact.step(ieee, optimizer.name, rounded[0], grad, rounded[1:], number, options)
        bound = exact.step(bounded, optimizer.name, bound[0], bounded.array(grad), bound[1:], number, options)
        for got, want, tolerance in zip(rounded, bound, tolerances.bounds(bound), strict=True):
            if want is not None:
                assert np.all(np.abs(got - want.value) <= tolerance)
        # No path through a formula rounds more than 12 times. (In float64 the coefficients count too: 1 -
        # beta**step loses bits in the double in which it is prepared.) The median: where a centered step
        # divides by a difference of nearly equal numbers, an element is rightly uncertain.
        if dtype == "float32":
            size = np.abs(before[0]) + np.abs(rounded[0] - before[0])
            assert np.median(tolerances.bounds(bound)[0] / size) <= 12 * number * tolerances.U[dtype]
