"""Moments in 8 bits: the code against its specification, and the step as the float32 step between two conversions."""

from __future__ import annotations

import copy
import math

import cases
import numpy as np
import problems
import pytest
import torch
from cases import BY_NAME
from eight_bits import in_8_bits, quantized
from fusestep import ops, reference
from problems import assert_same_bits

SQUARE = pytest.mark.parametrize("square", [False, True], ids=["signed", "square"])
SIZES = (0, 1, 2, 31, 32, 33, 255, 256, 257, 1000)
SHAPES = [(), (1,), (7,), (3, 5), (255,), (256,), (257,), (40, 41), (cases.SLICE + 129,)]
HALVES = ("bfloat16", "float16")
SETTINGS = [(o.name, s) for o in cases.OPTIMIZERS for s in o.settings if o.used_states(s) and not s.get("centered")]
by_setting = pytest.mark.parametrize(
    ("name", "options"), SETTINGS, ids=[f"{name}-{cases.describe(s)}" for name, s in SETTINGS]
)
RICHEST = {name: max((s for n, s in SETTINGS if n == name), key=len) for name in BY_NAME}


# --- the code ---------------------------------------------------------------------------------------------------
def numbers(square, size, rng):
    """float32 of many magnitudes, some of them zero."""
    values = rng.standard_normal(size) * 10.0 ** rng.uniform(-9, 0, size)
    values[rng.random(size) < 0.1] = 0.0
    values = values.astype(np.float32)
    return values**2 if square else values


def assert_as_specified(values, square):
    codes, scales = ops.quantize_8bit(values, square=square)
    want_codes, want_scales = reference.quantize_8bit(values, square=square)
    assert_same_bits(scales, want_scales)
    np.testing.assert_array_equal(codes, want_codes)
    got = ops.dequantize_8bit(codes, scales, square=square)
    want = reference.dequantize_8bit(codes, scales, square=square)
    assert_same_bits(problems.one_nan(got), problems.one_nan(want))
    return got


@SQUARE
@pytest.mark.parametrize("size", SIZES)
def test_the_code_is_the_specified_one(size, square, rng):
    assert_as_specified(numbers(square, size, rng), square)


@SQUARE
def test_every_boundary_between_codes(square):
    """The float32 numbers around the middle between each code and the next, and around each value."""
    values = reference.dequantize_8bit(np.arange(256, dtype=np.uint8), np.ones(1, np.float32), square=square)
    values = np.unique(np.abs(values))
    edges = np.concatenate([values, (values[1:] + values[:-1]) / 2, values[:2] * np.float32(0.9)])
    around = np.concatenate([np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(1))])
    around = np.minimum(around, np.float32(1))
    if not square:
        around = np.concatenate([around, -around])
    blocks = np.ones((-(-around.size // 255), 256), np.float32)  # each block has its 1
    blocks[:, 1:] = np.resize(around, (len(blocks), 255))
    assert_as_specified(blocks, square)
    assert_as_specified(blocks * np.float32(3e-5), square)


@SQUARE
@pytest.mark.parametrize("scale", [2.0**-149, 1e-40, 2.0**-126, 1.1e-38, 1.0, 1e30, 3.4e38])
def test_blocks_of_any_scale(scale, square, rng):
    values = np.clip(numbers(square, 512, rng), -1, 1) * np.float32(scale)
    values[0] = scale
    got = assert_as_specified(values, square)
    assert np.isfinite(got).all()
    assert got[0] == np.float32(scale) or scale < 2.0**-126


@SQUARE
def test_what_is_not_finite(square, rng):
    """A block with an infinity or a NaN becomes NaN; the others stay."""
    for bad in (math.inf, -math.inf, math.nan, -math.nan):
        values = numbers(square, 1024, rng)
        values[300] = bad
        got = assert_as_specified(values, square)
        assert np.isnan(got[256:512]).all()
        assert np.isfinite(np.delete(got, np.s_[256:512])).all()


@SQUARE
def test_the_codes_are_fixed_points(square):
    codes = np.arange(256, dtype=np.uint8)
    values = ops.dequantize_8bit(codes, np.ones(1, np.float32), square=square)
    again, scales = ops.quantize_8bit(values, square=square)
    np.testing.assert_array_equal(again, codes)
    assert scales == 1.0
    assert (np.unique(values).size == 256) == square  # 0 and -0 are one
    assert (values > 0).all() == square


@SQUARE
def test_relative_error(square, rng):
    """At most 1/32 in the upper half of the codes, 1/16 in the lower; below the range, the least value or 0."""
    fine, least = (2.0**-8, 2.0**-24 * 1.125) if square else (2.0**-4, 2.0**-12 * 1.25)
    fractions = np.exp2(-rng.uniform(0, 30, 1 << 16)).astype(np.float32)
    fractions[::256] = 1.0
    got = ops.dequantize_8bit(*ops.quantize_8bit(fractions, square=square), square=square)
    error = np.abs(got - fractions) / fractions
    assert error[fractions >= fine].max() <= 1 / 32
    assert error[fractions >= least].max() <= 1 / 16
    below = np.unique(got[fractions < least * 0.9])
    np.testing.assert_array_equal(below, [np.float32(least) if square else 0.0])


def dynamic_map(square):
    """The values of bitsandbytes' dynamic code: a decade has half as many as the one above it (arXiv:2110.02861)."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + square) + 1)
        middles = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*middles] if square else [*middles, *-middles]
    return np.sort(np.array(values))


def test_as_good_as_the_dynamic_code(rng):
    """Adam's update from moments in 8 bits: the error is no greater than with the code of bitsandbytes.

    The moments spread over three decades within a block. How exact each of them is, test_relative_error bounds.
    """
    size, steps = 1 << 16, 50
    spread = np.repeat(10.0 ** rng.uniform(-2, 0, size // 128), 128) * 10.0 ** rng.uniform(-1, 0, size)
    m, v = np.zeros(size), np.zeros(size)
    for _ in range(steps):
        g = rng.standard_normal(size) * spread
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    update = m / np.sqrt(v)

    def dynamic(values, square):
        blocks = values.reshape(-1, 256)
        scale = np.abs(blocks).max(axis=1, keepdims=True)
        code = dynamic_map(square)
        nearest = np.searchsorted((code[1:] + code[:-1]) / 2, blocks / scale)
        return (code[nearest] * scale).ravel()

    def ours(values, square):
        codes, scales = reference.quantize_8bit(values.astype(np.float32), square=square)
        return reference.dequantize_8bit(codes, scales, square=square).astype(np.float64)

    def error(convert):
        m8, v8 = convert(m, False), convert(v, True)
        # bitsandbytes' code for 0 in the second moment leaves eps alone there
        with np.errstate(all="ignore"):
            off = m8 / (np.sqrt(v8) + 1e-8) - update
        return np.sqrt(np.square(off).mean())

    assert error(ours) <= error(dynamic)


# --- the step ---------------------------------------------------------------------------------------------------
def companions(problem):
    kept = problem.rounding.get("compensations") or problem.rounding.get("master_params")
    return None if kept is None else problems.flat(kept)


def check(problem, number, *, order="C", **clipping):
    """Both problems make a step: the same parameters, and the codes are those of the float32 states."""
    eight = in_8_bits(problem, order)
    norms = problem.step(number, **clipping), eight.step(number, **clipping)
    assert norms[0] == norms[1]
    for name in ("params", "grads"):
        assert_same_bits(problems.flat(getattr(eight, name)), problems.flat(getattr(problem, name)), name)
    assert_same_bits(companions(eight), companions(problem), "companions")
    for k, (state, arrays) in enumerate(zip(problem.optimizer.states, problem.states, strict=True)):
        if arrays is None:
            continue
        codes, scales = quantized(arrays, state.non_negative, order)
        for i, (code, scale) in enumerate(zip(codes, scales, strict=True)):
            what = f"{state.name}[{i}]"
            assert_same_bits(eight.rounding[f"{state.name}_absmax"][i].numpy(), scale, what)
            np.testing.assert_array_equal(eight.states[k][i].numpy(), code, what)


@by_setting
def test_every_setting(name, options, rng):
    problem = problems.make(BY_NAME[name], options, SHAPES, rng=rng, mid_run=True)
    for number in (1, 2, 3):
        check(problem, number)


@pytest.mark.parametrize("clipping", cases.CLIPPINGS, ids=cases.describe)
def test_clipping(clipping, rng):
    problem = problems.make(BY_NAME["adamw"], RICHEST["adamw"], SHAPES, rng=rng, mid_run=True)
    check(problem, 2, rewrite_grads=True, **clipping)


@pytest.mark.parametrize("grad", ["float32", *HALVES])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rounding", [None, "stochastic", "kahan", "master"])
@pytest.mark.parametrize("name", list(BY_NAME))
def test_beside_16_bit_parameters(name, rounding, dtype, grad, rng):
    options = RICHEST[name]
    problem = problems.make(BY_NAME[name], options, SHAPES, (dtype, grad), rng=rng, mid_run=True, state_dtype="float32")
    if rounding == "stochastic":
        problem.rounding = {"rounding": rounding, "seed": 99}
    elif rounding == "kahan":
        low = [problems.array(rng.standard_normal(s) * 2.0**-12, dtype) for s in SHAPES]
        problem.rounding = {"rounding": rounding, "compensations": low}
    elif rounding == "master":
        problem.rounding = {"master_params": [problems.array(rng.standard_normal(s), "float32") for s in SHAPES]}
    for number in (1, 70000):
        check(problem, number, max_grad_norm=0.7)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_blocks_follow_the_memory(name, rng):
    """A transposed parameter with states that lie as it does; the gradient lies otherwise."""
    shapes = [(33, 40), (300, 7), (5,)]
    problem = problems.make(
        BY_NAME[name], RICHEST[name], shapes, rng=rng, mid_run=True, layout=("transposed", "contiguous")
    )
    check(problem, 3, order="F")


def test_a_state_of_each_kind(rng):
    """One moment in 8 bits beside another of float32."""
    problem = problems.make(BY_NAME["adam"], {}, SHAPES, rng=rng, mid_run=True)
    eight = in_8_bits(problem)
    wide = copy.deepcopy(problem.states[1])
    eight.states[1] = wide
    eight.rounding.pop("exp_avg_sqs_absmax")
    for p in (problem, eight):
        p.step(4)
    assert_same_bits(problems.flat(eight.params), problems.flat(problem.params))
    assert_same_bits(problems.flat(wide), problems.flat(problem.states[1]))
    codes, _ = quantized(problem.states[0], square=False)
    np.testing.assert_array_equal(problems.flat(eight.states[0]), problems.flat(codes))


def test_what_has_no_gradient_does_not_move():
    """A row whose gradient is 0 from the start, in a block with others: its second moment is not 0, its first is."""
    param, grad = torch.ones(256), torch.zeros(256)
    grad[:64] = torch.linspace(1e-6, 1e3, 64)
    states = [torch.zeros(256, dtype=torch.uint8) for _ in range(2)]
    scales = [torch.zeros(1) for _ in range(2)]
    for step in (1, 2, 3):
        ops.adam_(
            [param],
            [grad],
            *([s] for s in states),
            step=step,
            lr=0.1,
            exp_avgs_absmax=[scales[0]],
            exp_avg_sqs_absmax=[scales[1]],
        )
    assert torch.equal(param[64:], torch.ones(192))
    assert (param[:64] < 1).all()


# --- what is refused ----------------------------------------------------------------------------------------------
def good(n=300):
    return {
        "params": [torch.zeros(n)],
        "grads": [torch.ones(n)],
        "exp_avgs": [torch.zeros(n, dtype=torch.uint8)],
        "exp_avg_sqs": [torch.zeros(n, dtype=torch.uint8)],
        "exp_avgs_absmax": [torch.zeros(-(-n // 256))],
        "exp_avg_sqs_absmax": [torch.zeros(-(-n // 256))],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exp_avgs_absmax": None}, r"exp_avgs_absmax\[0\]: expected arrays beside states of uint8, got None"),
        ({"exp_avgs_absmax": []}, "exp_avgs_absmax: expected 1 items, one for each of params, got 0"),
        ({"exp_avg_sqs_absmax": [torch.zeros(3)]}, r"exp_avg_sqs\[0\]: expected contiguous absmax of shape \(2,\)"),
        ({"exp_avgs_absmax": [torch.zeros(2, 1)]}, r"exp_avgs\[0\]: expected contiguous absmax of shape \(2,\)"),
        ({"exp_avgs_absmax": [torch.zeros(2).double()]}, r"exp_avgs\[0\]: expected absmax of float32, got float64"),
        ({"exp_avgs": [torch.zeros(300, dtype=torch.int8)]}, r"exp_avgs\[0\]: expected a float32, .* or uint8 array"),
        ({"exp_avgs": [torch.zeros(299, dtype=torch.uint8)]}, r"exp_avgs\[0\]: expected shape \(300,\)"),
        (
            {"exp_avgs": [torch.zeros(600, dtype=torch.uint8)[::2]]},
            r"exp_avgs\[0\]: expected a uint8 array that lies in memory as its parameter does",
        ),
        (
            {"params": [torch.zeros(300).double()], "grads": [torch.ones(300).double()]},
            r"exp_avgs\[0\]: expected float64 as its parameter is, got uint8",
        ),
        ({"grads": [torch.ones(300, dtype=torch.uint8)]}, r"grads\[0\]: expected a float32, .* array"),
    ],
)
def test_bad_input(change, message):
    call = good() | change
    with pytest.raises((TypeError, ValueError), match=message):
        ops.adamw_(**call, step=1)
    assert not call["params"][0].any()


def test_memory_that_is_reached_twice():
    call = good()
    call["exp_avg_sqs_absmax"] = call["exp_avgs_absmax"]
    with pytest.raises(ValueError, match="memory"):
        ops.adamw_(**call, step=1)


def test_gaps_and_transposes():
    holes = torch.zeros(20, 40)[:, ::2]
    states = [torch.zeros(20, 20, dtype=torch.uint8) for _ in range(2)]
    call = {
        "grads": [torch.ones(20, 20)],
        "exp_avgs": [states[0]],
        "exp_avg_sqs": [states[1]],
        "exp_avgs_absmax": [torch.zeros(2)],
        "exp_avg_sqs_absmax": [torch.zeros(2)],
    }
    with pytest.raises(ValueError, match="lies in memory as its parameter does, both without gaps"):
        ops.adamw_(params=[holes], **call, step=1)
    call["exp_avgs"], call["exp_avg_sqs"] = ([s.t()] for s in states)
    square = torch.zeros(20, 20).t().bfloat16()
    assert not square.is_contiguous()
    with pytest.raises(ValueError, match="expected a C-contiguous parameter beside a uint8 array where rounding"):
        ops.adamw_(params=[square], **call, step=1, rounding="stochastic", seed=1)


def test_centered_rmsprop():
    n = 5
    codes = [[torch.zeros(n, dtype=torch.uint8)] for _ in range(2)]
    scales = {f"{s}_absmax": [torch.zeros(1)] for s in ("square_avgs", "grad_avgs")}
    with pytest.raises(TypeError, match=r"square_avgs\[0\]: expected float32, bfloat16 or float16 with centered=True"):
        ops.rmsprop_([torch.zeros(n)], [torch.ones(n)], codes[0], grad_avgs=codes[1], step=1, centered=True, **scales)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), "values: expected float32, got float64"),
        (np.zeros((4, 4), np.float32).T[:2], "values: expected a C-contiguous array of 8 elements"),
        ([1.0], "values: expected a dense float array"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises((TypeError, ValueError), match=f"^quantize_8bit: {message}"):
        ops.quantize_8bit(values, square=False)


def test_bad_codes():
    codes, absmax = ops.quantize_8bit(np.ones(300, np.float32), square=True)
    with pytest.raises(TypeError, match=r"^dequantize_8bit: codes: expected uint8, got float32"):
        ops.dequantize_8bit(codes.astype(np.float32), absmax, square=True)
    with pytest.raises(ValueError, match=r"^dequantize_8bit: absmax: expected a C-contiguous array of 2 elements"):
        ops.dequantize_8bit(codes, absmax[:1], square=True)
