"""Norms and clipping on their own: grad_norm, clip_grad_norm_, clip_grad_value_."""

from __future__ import annotations

import math

import cases
import numpy as np
import problems
import pytest
import tolerances
import torch
from fusestep import ops, reference
from problems import as_numpy, assert_same_bits, flat, image

GRAD_DTYPES = ("float32", "float64", "bfloat16", "float16")
NORM_TYPES = (1.0, 2.0, math.inf)
DTYPE = pytest.mark.parametrize("dtype", GRAD_DTYPES)
NORM = pytest.mark.parametrize("norm_type", NORM_TYPES)


def assert_norm(got, want, numel, norm_type, tensors=1):
    """`want` comes from the reference; with infinite norms nothing is rounded."""
    assert isinstance(got, float)
    if norm_type == math.inf:
        assert got == want
    else:
        error = tolerances.norm_error(numel, norm_type) + tolerances.reference_norm_error(numel, tensors)
        assert abs(got - want) <= error * want


# --- the norm -----------------------------------------------------------------------------------------------
@NORM
@DTYPE
def test_norm_over_sizes(dtype, norm_type, rng):
    grads = [problems.array(rng.standard_normal(n), dtype) for n in cases.SIZES]
    want = reference.grad_norm([as_numpy(g) for g in grads], norm_type)
    assert_norm(ops.grad_norm(grads, norm_type), want, sum(cases.SIZES), norm_type, len(grads))
    for grad in grads:
        want = reference.grad_norm([as_numpy(grad)], norm_type)
        assert_norm(ops.grad_norm([grad], norm_type), want, grad.numel(), norm_type)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@NORM
def test_norm_over_layouts(norm_type, layout, rng):
    for shape in cases.LAYOUT_SHAPES:
        values = rng.standard_normal(shape)
        grad = problems.array(values, "float32", "numpy", layout)
        want = reference.grad_norm([grad], norm_type)
        assert_norm(ops.grad_norm([grad], norm_type), want, values.size, norm_type)
        if layout in cases.TORCH_LAYOUTS:
            # The same numbers in the same memory: the same bits, whoever brings them.
            assert ops.grad_norm([torch.from_numpy(grad)], norm_type) == ops.grad_norm([grad], norm_type)


def test_norm_of_nothing():
    for norm_type in NORM_TYPES:
        assert ops.grad_norm([], norm_type) == 0.0
        assert ops.grad_norm([torch.zeros(0), np.zeros((0, 3))], norm_type) == 0.0
        assert ops.grad_norm([np.zeros(5, np.float32)], norm_type) == 0.0


def test_norm_of_a_mixed_list(rng):
    # Any dtype may stand beside any other: the norm is of numbers.
    grads = [
        problems.array(rng.standard_normal(n), dtype) for n, dtype in zip((5, 70, 900, 31), GRAD_DTYPES, strict=True)
    ]
    assert_norm(ops.grad_norm(grads), reference.grad_norm([as_numpy(g) for g in grads]), 1006, 2.0, 4)


def test_the_norm_of_an_expanded_gradient_counts_every_element():
    assert ops.grad_norm([torch.tensor(3.0).expand(16)]) == 12.0
    assert ops.grad_norm([np.broadcast_to(np.float32(3.0), (4, 4))]) == 12.0


@pytest.mark.parametrize("value", [3e38, 1e30, 1.0, 1e-30, 1e-40, 2.0**-149])
@NORM
def test_norm_neither_overflows_nor_underflows(norm_type, value):
    # In float32 the squares of all but one of these are inf or 0.
    grad = np.full(1000, value, np.float32)
    want = {1.0: 1000, 2.0: math.sqrt(1000), math.inf: 1}[norm_type] * float(grad[0])
    assert_norm(ops.grad_norm([grad], norm_type), want, 1000, norm_type)


@pytest.mark.parametrize("where", [0, 1, 31, 32, 16383, 16384, 40000])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@NORM
@DTYPE
def test_norm_of_what_is_not_finite(dtype, norm_type, value, where):
    """It is found wherever it stands: NaN gives NaN, even beside an infinity; an infinity gives inf."""
    values = np.ones(40001)
    values[where] = value
    norm = ops.grad_norm([problems.array(values, dtype)], norm_type)
    assert math.isnan(norm) if math.isnan(value) else norm == math.inf
    if math.isnan(value):
        values[where - 1] = math.inf
        assert math.isnan(ops.grad_norm([problems.array(values, dtype)], norm_type))


@NORM
def test_norm_of_ten_million(norm_type, rng):
    check_long_norm(10**7, norm_type, rng)


@pytest.mark.slow
def test_norm_of_a_hundred_million(rng):
    check_long_norm(10**8, 2.0, rng)


def check_long_norm(numel, norm_type, rng):
    # A block, over and over: its norm is known to the last bit but one. All of one sign, the worst for a sum
    # in float32.
    block = np.abs(rng.standard_normal(10**5)).astype(np.float32) + np.float32(1)
    times = numel // block.size
    power = {1.0: times, 2.0: math.sqrt(times), math.inf: 1}[norm_type]
    want = float(reference.grad_norm([block], norm_type)) * power
    got = ops.grad_norm([np.tile(block, times)], norm_type)
    assert_norm(got, want, numel, norm_type, tensors=2)
    assert abs(got - want) <= 1e-6 * want  # what is promised to users; the bound above is a million times closer


# --- clip_grad_norm_ ----------------------------------------------------------------------------------------
def clip_exactly(grads, norm, max_norm, clip_factor=None):
    """Every gradient times the coefficient (of 16 bits: in float32), rounded to its dtype."""
    coefficient = problems.scale_of(norm, max_grad_norm=max_norm, clip_factor=clip_factor)
    return [problems.store(as_numpy(g) * as_numpy(g).dtype.type(coefficient), g) for g in grads]


@pytest.mark.parametrize("options", [{}, {"clip_factor": 0.375}], ids=cases.describe)
@pytest.mark.parametrize("max_norm", [0.7, 1e6])
@NORM
@DTYPE
def test_clip_grad_norm(dtype, norm_type, max_norm, options, rng):
    grads = [problems.array(rng.standard_normal(n), dtype) for n in cases.SIZES]
    before = [g.clone() for g in grads]
    norm = ops.clip_grad_norm_(grads, max_norm, norm_type, **options)
    assert norm == ops.grad_norm(before, norm_type)  # the norm before clipping, the same bits
    for got, want in zip(grads, clip_exactly(before, norm, max_norm, **options), strict=True):
        assert_same_bits(as_numpy(got), want)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_clip_grad_norm_over_layouts(layout, rng):
    grads = [problems.array(rng.standard_normal(shape), "float32", "numpy", layout) for shape in cases.LAYOUT_SHAPES]
    before = [g.copy() for g in grads]
    norm = ops.clip_grad_norm_(grads, 0.5)
    assert_same_bits(flat(grads), np.concatenate([g.ravel() for g in clip_exactly(before, norm, 0.5)]))
    for grad in grads:
        if grad.base is not None and grad.base.size > grad.size and layout != "transposed":
            grad[...] = 77
            assert np.all(grad.base == 77)  # what lies between the elements is untouched


@NORM
def test_clip_grad_norm_against_torch(norm_type, rng):
    values = [rng.standard_normal(shape) for shape in ((30, 40), (7,), ())]
    params = [torch.nn.Parameter(torch.zeros(v.shape, dtype=torch.float64)) for v in values]
    for p, v in zip(params, values, strict=True):
        p.grad = torch.tensor(v)
    ours = [torch.tensor(v) for v in values]

    theirs = torch.nn.utils.clip_grad_norm_(params, 0.5, norm_type, foreach=False).item()
    norm = ops.clip_grad_norm_(ours, 0.5, norm_type)

    # torch adds at most 1200 terms one after another; the coefficient and the product are four roundings more
    # each.
    numel = sum(v.size for v in values)
    error = tolerances.norm_error(numel, norm_type) + numel * tolerances.U["float64"]
    assert abs(norm - theirs) <= error * norm
    for p, g in zip(params, ours, strict=True):
        np.testing.assert_allclose(g.numpy(), p.grad.numpy(), rtol=error + 8 * tolerances.U["float64"], atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@NORM
def test_clip_grad_norm_of_what_is_not_finite(norm_type, value, rng):
    """As torch: inf leaves zeros and one NaN, NaN spoils all; error_if_nonfinite changes nothing."""
    values = rng.standard_normal(100).astype(np.float32)
    values[17] = value
    p = torch.nn.Parameter(torch.zeros(100))
    p.grad = torch.tensor(values)
    torch.nn.utils.clip_grad_norm_([p], 1.0, norm_type, foreach=False)
    ours = torch.tensor(values)

    with pytest.raises(RuntimeError, match=r"^clip_grad_norm_: grads: expected a finite norm, got (nan|inf)"):
        ops.clip_grad_norm_([ours], 1.0, norm_type, error_if_nonfinite=True)
    assert_same_bits(ours.numpy(), values)

    norm = ops.clip_grad_norm_([ours], 1.0, norm_type)
    assert math.isnan(norm) if math.isnan(value) else norm == math.inf
    np.testing.assert_array_equal(ours.numpy(), p.grad.numpy())  # NaN equals NaN here


def test_an_infinite_limit_only_measures():
    for options in ({}, {"clip_factor": 0.5}):
        grad = np.array([3.0, -4.0])
        assert ops.clip_grad_norm_([grad], math.inf, **options) == 5.0
        np.testing.assert_array_equal(grad, [3.0, -4.0])


def test_clip_grad_norm_at_the_threshold():
    # Exactly at it: torch's coefficient is a little below 1 (the 1e-6), the seed's factor does not yet apply.
    grad = np.array([3.0, 4.0])
    ops.clip_grad_norm_([grad], 5.0)
    np.testing.assert_array_equal(grad, np.array([3.0, 4.0]) * (5.0 / (5.0 + 1e-6)))
    grad = np.array([3.0, 4.0])
    ops.clip_grad_norm_([grad], 5.0, clip_factor=0.5)
    np.testing.assert_array_equal(grad, [3.0, 4.0])


# --- clip_grad_value_ ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("clip_value", [0.1, 0.5, 1e4])
@DTYPE
def test_clip_grad_value_against_torch(dtype, clip_value, rng):
    values = [rng.standard_normal(n) for n in cases.SIZES]
    for v in values[-3:]:
        v[[3, 7, -1]] = math.inf, -math.inf, math.nan
    grads = [problems.array(v, dtype) for v in values]
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_value_(params, clip_value, foreach=False)

    assert ops.clip_grad_value_(grads, clip_value) is None

    np.testing.assert_array_equal(flat(grads), flat([p.grad for p in params]))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_clip_grad_value_over_layouts(layout, rng):
    for shape in cases.LAYOUT_SHAPES:
        grad = problems.array(rng.standard_normal(shape), "float32", "numpy", layout)
        (want,) = reference.clip_by_value([grad], 0.25)
        ops.clip_grad_value_([grad], 0.25)
        np.testing.assert_array_equal(grad, want)


def test_clipping_nothing():
    assert ops.clip_grad_norm_([], 1.0) == 0.0
    ops.clip_grad_value_([], 1.0)
    empty = [np.zeros((0, 4), np.float32)]
    before = image(empty)
    assert ops.clip_grad_norm_(empty, 1.0) == 0.0
    ops.clip_grad_value_(empty, 1.0)
    assert image(empty) == before
