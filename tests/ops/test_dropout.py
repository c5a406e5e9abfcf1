"""fusestep.ops.dropout and dropout_add."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cases
import exact
import numpy as np
import problems
import pytest
import torch
from fusestep import ops, reference
from problems import as_numpy, assert_same_bits

DTYPES = ("float32", "float64", "bfloat16", "float16")
DTYPE = pytest.mark.parametrize("dtype", DTYPES)
P = pytest.mark.parametrize("p", [0.0, 2.0**-16, 0.1, 0.5, 0.9999, math.nextafter(1, 0), 1.0])
SEED, OFFSET = 0xFEDCBA9876543210, 0x89ABCDEF
SEEDS = {"seed": SEED, "offset": OFFSET}


def keep(shape, p):
    return reference.dropout_keep(math.prod(shape), p, **SEEDS).reshape(shape)


def stored(values, dtype):
    """The exact values rounded once to the arithmetic, and once more to a narrower dtype."""
    values = values.astype(np.float64 if dtype == "float64" else np.float32)
    return as_numpy(problems.array(values, dtype, "torch")) if values.size else values


def wanted(x, p, dtype):
    """What must come out bit for bit: one rounding in the arithmetic, one in storing."""
    wide = np.float64 if dtype == "float64" else np.float32
    scaled = as_numpy(x).astype(wide) * wide(reference.dropout_scale(p))
    return stored(np.where(keep(scaled.shape, p), scaled, 0), dtype)


# --- which, and what becomes of them ------------------------------------------------------------------------
@P
@DTYPE
def test_which_elements_and_their_values(dtype, p, rng):
    for n in cases.SIZES:
        x = problems.array(rng.standard_normal(n), dtype)
        out = ops.dropout(x, p, **SEEDS)
        assert_same_bits(as_numpy(out), wanted(x, p, dtype), f"{n} elements")


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("out_layout", cases.LAYOUTS)
def test_which_elements_does_not_depend_on_the_layout(layout, out_layout, rng):
    """They are counted in C order of the shape, wherever they lie."""
    for shape in cases.LAYOUT_SHAPES:
        x = problems.array(rng.standard_normal(shape), "float32", "numpy", layout)
        residual = problems.array(rng.standard_normal(shape), "float32", "numpy", "column")
        out = problems.array(np.zeros(shape), "float32", "numpy", out_layout)
        assert ops.dropout(x, 0.4, **SEEDS, out=out) is out
        assert_same_bits(out, wanted(x, 0.4, "float32"))
        if out.base is not None and out_layout in ("strided", "column", "rows"):
            assert (out.base == 77).sum() == out.base.size - out.size  # nothing beside it was written
        flat = ops.dropout_add(x.copy(), residual.copy(), 0.4, **SEEDS)
        ops.dropout_add(x, residual, 0.4, **SEEDS, out=out)
        assert_same_bits(out, flat)


def test_which_elements_of_large_arrays(rng):
    """Several slices; the reference is asked for pieces."""
    n = 5 * cases.SLICE + 77
    x = rng.standard_normal(n).astype(np.float32)
    assert_same_bits(ops.dropout(x, 0.3, **SEEDS), wanted(x, 0.3, "float32"))


@pytest.mark.slow
def test_elements_beyond_31_bits():
    """The upper word of the counter, from element 2**35 on, is more than memory allows: the reference alone has it."""
    n = 2**31 + 1000
    if available_bytes() < 3 * n:
        pytest.skip("needs six gigabytes of free memory")
    x = np.ones(n, np.float16)
    ops.dropout(x, 0.5, **SEEDS, out=x)
    for first in (0, 2**31 - 500, n - 77):
        count = min(1000, n - first)
        want = reference.dropout_keep(count, 0.5, **SEEDS, first=first)
        np.testing.assert_array_equal(x[first : first + count] != 0, want)


def available_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def wanted_sum(x, residual, p, dtype):
    """What must come out of dropout_add bit for bit, in torch's promoted dtype."""
    wide = np.float64 if dtype == "float64" else np.float32
    kept = np.where(keep(x.shape, p), as_numpy(x), 0).astype(wide)
    return stored(exact.fma(kept, wide(reference.dropout_scale(p)), as_numpy(residual).astype(wide)), dtype)


def promoted(dtype, residual_dtype):
    promoted = torch.promote_types(getattr(torch, dtype), getattr(torch, residual_dtype))
    return str(promoted).removeprefix("torch.")


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("residual_dtype", DTYPES)
@DTYPE
def test_dropout_add_rounds_once(dtype, residual_dtype, p, rng):
    """In torch's promotion of the two dtypes, which may differ, and for p = 1 nothing but the residual."""
    for n in cases.SIZES:
        x, residual = (
            problems.array(rng.standard_normal(n), dtype),
            problems.array(rng.standard_normal(n), residual_dtype),
        )
        out = ops.dropout_add(x, residual, p, **SEEDS)
        assert out.dtype == (x + residual).dtype
        assert_same_bits(as_numpy(out), wanted_sum(x, residual, p, promoted(dtype, residual_dtype)), f"{n} elements")


@pytest.mark.parametrize("layout", cases.TORCH_LAYOUTS)
@pytest.mark.parametrize("residual_dtype", DTYPES)
@DTYPE
def test_two_dtypes_in_any_layout(dtype, residual_dtype, layout, rng):
    for shape in cases.LAYOUT_SHAPES:
        x = problems.array(rng.standard_normal(shape), dtype, layout=layout)
        residual = problems.array(rng.standard_normal(shape), residual_dtype, layout="column")
        want = wanted_sum(x, residual, 0.3, promoted(dtype, residual_dtype))
        assert_same_bits(as_numpy(ops.dropout_add(x, residual, 0.3, **SEEDS)), want)
        if dtype != residual_dtype and promoted(dtype, residual_dtype) == residual_dtype:
            assert ops.dropout_add(x, residual, 0.3, **SEEDS, out=residual) is residual
            assert_same_bits(as_numpy(residual), want)


@pytest.mark.parametrize("residual_dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_two_dtypes_of_numpy(dtype, residual_dtype, rng):
    x, residual = rng.standard_normal((2, 100))
    out = ops.dropout_add(x.astype(dtype), residual.astype(residual_dtype), 0.3, **SEEDS)
    assert out.dtype == np.promote_types(dtype, residual_dtype)
    pair = (torch.from_numpy(x.astype(dtype)), torch.from_numpy(residual.astype(residual_dtype)))
    assert_same_bits(out, ops.dropout_add(*pair, 0.3, **SEEDS).numpy())


def test_how_many_are_kept_and_what_is_expected(rng):
    n = 1 << 20
    x = np.ones(n, np.float32)
    for p in (0.1, 0.37, 0.8):
        out = ops.dropout(x, p, seed=3)
        deviation = math.sqrt(p * (1 - p) / n)
        assert abs((out != 0).mean() - (1 - p)) <= 5 * deviation + 2.0**-17
        assert abs(out.astype(np.float64).mean() - 1) <= 5 * deviation / (1 - p)


def test_seeds_and_offsets_give_other_masks():
    x = np.ones(4096, np.float32)
    masks = [ops.dropout(x, 0.5, seed=s, offset=o) != 0 for s, o in ((1, 0), (2, 0), (1 << 32 | 1, 0), (1, 1))]
    for i in range(len(masks)):
        for j in range(i):
            # Two masks of one half agree on about half.
            assert abs((masks[i] == masks[j]).mean() - 0.5) <= 5 * 0.5 / math.sqrt(x.size)


def test_what_is_dropped_is_zero_whatever_it_was():
    x = np.full(1000, math.nan, np.float32)
    x[::2] = math.inf
    residual = np.arange(1000, dtype=np.float32)
    dropped = ~keep((1000,), 0.5)
    assert (ops.dropout(x, 0.5, **SEEDS)[dropped] == 0).all()
    assert (ops.dropout(x, 1.0, **SEEDS) == 0).all()
    np.testing.assert_array_equal(ops.dropout_add(x, residual, 1.0, **SEEDS), residual)
    np.testing.assert_array_equal(ops.dropout_add(x, residual, 0.5, **SEEDS)[dropped], residual[dropped])


def test_the_backward_pass_is_the_same_function(rng):
    x, grad = rng.standard_normal((2, 500))
    slope = ops.dropout(np.ones(500), 0.3, **SEEDS)
    np.testing.assert_array_equal(ops.dropout(grad, 0.3, **SEEDS), grad * slope)
    np.testing.assert_array_equal(ops.dropout(x, 0.3, **SEEDS) == 0, slope == 0)


# --- threads, in place, arrays ------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same_bits(count, threads, rng):
    x = rng.standard_normal(20 * cases.SLICE + 3).astype(np.float32)
    threads(1)
    want = ops.dropout(x, 0.2, **SEEDS)
    threads(count)
    for _ in range(20):
        assert_same_bits(ops.dropout(x, 0.2, **SEEDS), want)


@pytest.mark.parametrize("layout", cases.TORCH_LAYOUTS)
@DTYPE
def test_in_place(dtype, layout, rng):
    values, others = rng.standard_normal((2, 33, 65))
    x = problems.array(values, dtype, "torch", layout)
    residual = problems.array(others, dtype, "torch", layout)
    want = as_numpy(ops.dropout_add(x, residual, 0.3, **SEEDS))
    before = residual._version
    assert ops.dropout_add(x, residual, 0.3, **SEEDS, out=residual) is residual
    assert residual._version == before + 1
    assert_same_bits(as_numpy(residual).copy(), want)
    want = wanted(x, 0.3, dtype)
    ops.dropout(x, 0.3, **SEEDS, out=x)
    assert_same_bits(np.ascontiguousarray(as_numpy(x)), want)


def test_results_are_of_the_kind_that_came_in(rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    assert type(ops.dropout(x, 0.1, seed=0)) is np.ndarray
    out = ops.dropout(torch.from_numpy(x), 0.1, seed=0)
    assert isinstance(out, torch.Tensor)
    assert_same_bits(out.numpy(), ops.dropout(x, 0.1, seed=0))


# --- refusals -----------------------------------------------------------------------------------------------
def assert_refused(error, argument, function, *arrays, **options):
    before = problems.image([a for a in (*arrays, options.get("out")) if isinstance(a, (np.ndarray, torch.Tensor))])
    with pytest.raises(error) as raised:
        function(*arrays, **options)
    message = str(raised.value)
    assert re.match(rf"{function.__name__}: {argument}: expected .+, got .+", message, re.DOTALL), message
    assert type(raised.value) is error
    after = problems.image([a for a in (*arrays, options.get("out")) if isinstance(a, (np.ndarray, torch.Tensor))])
    assert after == before


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize("p", [-0.1, math.nextafter(1, 2), 2, math.nan, math.inf])
def test_probabilities_out_of_range(p):
    assert_refused(ValueError, "p", ops.dropout, ones(5), p=p, seed=0)
    assert_refused(ValueError, "p", ops.dropout_add, ones(5), ones(5), p=p, seed=0)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("p", "0.1", TypeError),
        ("p", None, TypeError),
        ("seed", -1, ValueError),
        ("seed", 2**64, ValueError),
        ("seed", 0.5, TypeError),
        ("seed", None, TypeError),
        ("offset", -1, ValueError),
        ("offset", 2**32, ValueError),
        ("offset", "1", TypeError),
    ],
)
def test_numbers_that_are_none(name, value, error):
    assert_refused(error, name, ops.dropout, ones(5), **({"p": 0.1, "seed": 0} | {name: value}))


@pytest.mark.parametrize(
    "wrong", [None, [1.0], "x", 3.0, np.ones(5, np.int32), np.ones(5, bool), np.ones(5, np.complex64)]
)
def test_what_is_no_array_of_floats(wrong):
    assert_refused(TypeError, "x", ops.dropout, wrong, p=0.1, seed=0)
    assert_refused(TypeError, "residual", ops.dropout_add, ones(5), wrong, p=0.1, seed=0)
    if wrong is not None:
        assert_refused(TypeError, "out", ops.dropout, ones(5), p=0.1, seed=0, out=wrong)


def test_shapes_and_dtypes_that_differ():
    for shape in ((4,), (5, 1), (1, 5), ()):
        assert_refused(ValueError, "out", ops.dropout, ones(5), p=0.1, seed=0, out=ones(*shape))
        assert_refused(ValueError, "residual", ops.dropout_add, ones(5), ones(*shape), p=0.1, seed=0)
    for dtype in (np.float64, np.float16):
        assert_refused(TypeError, "out", ops.dropout, ones(5), p=0.1, seed=0, out=ones(5, dtype=dtype))
        assert_refused(TypeError, "out", ops.dropout_add, ones(5), ones(5), p=0.1, seed=0, out=ones(5, dtype=dtype))
    half = ones(5, dtype=np.float16)
    assert_refused(TypeError, "out", ops.dropout_add, ones(5), half, p=0.1, seed=0, out=half)
    assert_refused(TypeError, "out", ops.dropout_add, half, ones(5), p=0.1, seed=0, out=half)


def test_memory_that_overlaps():
    """Only the very same view may be written in place."""
    memory = ones(10)
    square = ones(4, 4)
    for x, out in ((memory[:8], memory[2:]), (memory[:5], memory[4:9]), (memory[::-1], memory), (square, square.T)):
        assert_refused(ValueError, "out", ops.dropout, x, p=0.1, seed=0, out=out)
        assert_refused(ValueError, "out", ops.dropout_add, ones(*x.shape), x, p=0.1, seed=0, out=out)
    assert_refused(ValueError, "out", ops.dropout, ones(3, 4), p=0.1, seed=0, out=torch.ones(1, 4).expand(3, 4))


def test_an_array_that_is_read_only():
    out = ones(5)
    out.flags.writeable = False
    assert_refused(ValueError, "out", ops.dropout, ones(5), p=0.1, seed=0, out=out)
