"""Parameters and states of 16 bits: one float32 update, then one rounding, bit for bit."""

from __future__ import annotations

import math

import cases
import numpy as np
import problems
import pytest
import sixteen_bits
import torch
from cases import BY_NAME
from fusestep import ops, reference
from problems import as_numpy, assert_same_bits

HALVES = tuple(sixteen_bits.HALVES)
SHAPES = [(), (1,), (7,), (3, 5), (256,), (255,), (257,), (40, 41), (cases.SLICE + 129,)]
EVERY_SETTING = [(o.name, i) for o in cases.OPTIMIZERS for i in range(len(o.settings))]
# (parameter, gradient, state)
MIXTURES = [
    (p, g, s)
    for p in ("float32", *HALVES)
    for g in ("float32", *HALVES)
    for s in ("float32", *HALVES)
    if (p, g, s) != ("float32", "float32", "float32")
]


def rounded(values, like):
    """float32 `values` as `like` stores them, to the nearest, widened again."""
    return problems.store(np.ascontiguousarray(values), like).astype(np.float32)


def check_nearest(problem, number, **clipping):
    before = problem.flat()
    norm = problem.step(number, **clipping)
    wants = problems.expected(problem, before, number, norm, **clipping)
    lists = (problem.params, problem.grads, *problem.states)
    for name, got, want, arrays in zip(
        ("param", "grad", "state", "state", "state"), problem.flat(), wants, lists, strict=False
    ):
        if got is not None:
            assert_same_bits(got, rounded(want.astype(np.float32), arrays[0]), name)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("name", "setting"), EVERY_SETTING)
def test_every_setting(name, setting, dtype, rng):
    optimizer = BY_NAME[name]
    problem = problems.make(optimizer, optimizer.settings[setting], SHAPES, (dtype, dtype), rng=rng, mid_run=True)
    for number in (1, 2, 3):
        check_nearest(problem, number)


@pytest.mark.parametrize(("param", "grad", "state"), MIXTURES, ids="-".join)
@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_mixture_of_dtypes(name, param, grad, state, rng):
    optimizer = BY_NAME[name]
    options = optimizer.settings[-1]
    problem = problems.make(optimizer, options, SHAPES, (param, grad), rng=rng, mid_run=True, state_dtype=state)
    check_nearest(problem, 2, max_grad_norm=0.5, grad_scale=4.0, rewrite_grads=True)


# --- stochastic rounding, compensations, float32 copies --------------------------------------------------------
LAYOUT_SHAPES = [(), (1,), (6, 35), (33, 9), (4, 5, 70)]
SEED = 0xFEDCBA9876543210


def make_rounded(rounding, dtype, shapes, rng, *, name="adamw", options=None, grad="float32", state=None, **more):
    """A problem whose parameters are rounded in that way, in the middle of a run."""
    options = {"amsgrad": True} if options is None and name == "adamw" else options or {}
    problem = problems.make(
        BY_NAME[name], options, shapes, (dtype, grad), rng=rng, mid_run=True, state_dtype=state, **more
    )
    if rounding == "stochastic":
        problem.rounding = {"rounding": "stochastic", "seed": SEED}
    elif rounding is not None:
        wide = [rng.standard_normal(s).astype(np.float32) * (2.0**-12 if rounding == "kahan" else 1) for s in shapes]
        kind, layout = more.get("kind", "torch"), more.get("layout") or "contiguous"
        arrays = [problems.array(w, dtype if rounding == "kahan" else "float32", kind, layout) for w in wide]
        problem.rounding = (
            {"rounding": "kahan", "compensations": arrays} if rounding == "kahan" else {"master_params": arrays}
        )
    return problem


def check_rounded(problem, number, **clipping):
    """A float32 update of what the parameters stand for, then the rounding, against the reference."""
    kind = problem.rounding.get("rounding") or ("master" if "master_params" in problem.rounding else None)
    companions = problem.rounding.get("compensations") or problem.rounding.get("master_params")
    before = problem.flat()
    before[0] = sixteen_bits.stands_for(kind, before[0], None if companions is None else problems.flat(companions))
    sizes = [math.prod(as_numpy(p).shape) for p in problem.params]
    norm = problem.step(number, **clipping)
    param, _, *states = problems.expected(problem, before, number, norm, **clipping)
    got, _, *got_states = problem.flat()

    numbers = None
    if kind == "stochastic":
        draws = [reference.rounding_numbers((n,), seed=SEED, parameter=i, step=number) for i, n in enumerate(sizes)]
        numbers = np.concatenate(draws)
    dtype = dtype_of(problem.params)
    assert_same_bits(got, sixteen_bits.stored(param, dtype, numbers), "param")
    for k, state in enumerate(states):
        if state is not None:
            want = sixteen_bits.stored(state, dtype_of(problem.states[k]), numbers, k)
            assert_same_bits(got_states[k], want, f"state {k}")
    if companions is not None:
        want = sixteen_bits.companion_after(kind, param, got, dtype)
        assert_same_bits(problems.flat(companions), want, "companion")


def dtype_of(arrays):
    return str(arrays[0].dtype).removeprefix("torch.")


@pytest.mark.parametrize("state", ["float32", *HALVES])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "master"])
@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_rounding(name, rounding, dtype, state, rng):
    options = BY_NAME[name].settings[-1]
    problem = make_rounded(rounding, dtype, SHAPES, rng, name=name, options=options, grad=dtype, state=state)
    for number in (1, 2, 70000):
        check_rounded(problem, number, max_grad_norm=0.7)


def test_stochastic_rounding_is_unbiased(rng):
    """The mean of 4,000 roundings of a value lies within five standard deviations of the value."""
    value, rounds = np.float32(1.0 + 2.0**-9 + 2.0**-12), 4000
    for dtype, unit in (("bfloat16", 2.0**-7), ("float16", 2.0**-10)):
        params = [problems.array(np.zeros(rounds), dtype)]
        ops.sgd_(params, [torch.full((rounds,), -float(value))], step=1, lr=1.0, rounding="stochastic", seed=3)
        rest = float(value) / unit % 1
        sigma = unit * math.sqrt(rest * (1 - rest) / rounds)
        got = as_numpy(params[0]).astype(np.float64)
        assert set(np.unique(got)) == {float(value) - rest * unit, float(value) + (1 - rest) * unit}
        assert abs(got.mean() - float(value)) <= 5 * sigma


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_of_every_kind_of_number(dtype):
    """Zeros, the smallest and the largest, infinities, NaN: against the reference, each with many draws."""
    largest = 65504.0 if dtype == "float16" else 3.3895313892515355e38
    tiny = 2.0**-24 if dtype == "float16" else 2.0**-133
    values = np.float32([0.0, -0.0, tiny, tiny / 3, -tiny * 2.7, 2.0**-14, 2.0**-14 * 0.999, 1.0, largest, -largest])
    values = np.repeat(np.concatenate([values, np.float32([np.inf, -np.inf, np.nan, largest * 1.0001])]), 64)
    params = [problems.array(np.zeros(values.size), dtype)]
    # 0 - 1 * -value is the value, but for the sign of zero
    ops.sgd_(params, [torch.from_numpy(-values)], step=5, lr=1.0, rounding="stochastic", seed=SEED)
    numbers = reference.rounding_numbers(values.shape, seed=SEED, parameter=0, step=5)
    want = reference.round_stochastic(values + np.float32(0), numbers, dtype).astype(np.float32)
    np.testing.assert_array_equal(as_numpy(params[0]), want)


def test_a_sum_of_two_keeps_what_one_loses():
    """bfloat16 + bfloat16: 1,000 updates of 1e-4 of the parameter, each below half of its last bit."""
    param, low = torch.ones(64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
    alone = param.clone()
    for step in range(1, 1001):
        ops.sgd_([param], [torch.full((64,), 1e-4)], step=step, lr=1.0, rounding="kahan", compensations=[low])
        ops.sgd_([alone], [torch.full((64,), 1e-4)], step=step, lr=1.0)
    # each step rounds the sum to 16 bits of mantissa: an error of at most 2**-17 of it
    assert torch.allclose(param.double() + low.double(), torch.tensor(0.9, dtype=torch.float64), atol=1000 * 2.0**-17)
    assert torch.equal(alone, torch.ones_like(alone))


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", (2 - 2.0**-7) * 2.0**127)])
def test_an_infinite_sum_of_two_stays_infinite(dtype, largest):
    """An update beyond the dtype's range, not float32's: what the parameter lacks of it is infinite too."""
    param = torch.tensor([largest, -largest, 1.0] * 33, dtype=getattr(torch, dtype))
    low, grad = torch.zeros_like(param), torch.tensor([-1.0, 1.0, 0.0] * 33) * (largest * 2.0**-8)
    for step in (1, 2, 3):
        ops.sgd_([param], [grad], step=step, lr=1.0, rounding="kahan", compensations=[low])
        assert param.tolist() == [math.inf, -math.inf, 1.0] * 33
        assert torch.equal(low, torch.zeros_like(low))


# Of all bits set: a carry out of the lower half would make it -0.
FULL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, FULL_NAN], ids=["nan", "inf", "full nan"])
@pytest.mark.parametrize("grad", ["own", "float32"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rounding", [None, "stochastic", "kahan", "master"])
def test_what_is_not_finite_stays_alone(rounding, dtype, grad, bad):
    """A gradient that is not finite, at every position: parameter and states there are not either, and others are."""
    size = 67

    def after(position):
        rng = np.random.default_rng(5)
        problem = make_rounded(rounding, dtype, [(size,)], rng, grad=dtype if grad == "own" else grad, state=dtype)
        if position is not None:
            problem.grads[0][position : position + 1] = torch.from_numpy(np.float32([bad]))
        problem.step(3)
        param, _, *states = problem.flat()
        return [param, *states], [problems.flat(c) for c in problem.rounding.values() if isinstance(c, list)]

    clean, clean_companions = after(None)
    for position in range(size):
        results, companions = after(position)
        others = np.arange(size) != position
        for got, want in zip([*results, *companions], [*clean, *clean_companions], strict=True):
            assert_same_bits(got[others], want[others], f"beside {position}")
        assert not any(np.isfinite(got[position]) for got in results)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_copy_that_is_not_a_number(dtype):
    for position in range(67):
        params, grads = [np.ones(67, sixteen_bits.HALVES[dtype])], [np.zeros(67, sixteen_bits.HALVES[dtype])]
        master = np.ones(67, np.float32)
        master[position] = FULL_NAN
        ops.sgd_(params, grads, step=1, lr=1.0, master_params=[master])
        assert np.flatnonzero(np.isnan(params[0].astype(np.float32))).tolist() == [position]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("rounding", [None, "stochastic", "kahan", "master"])
def test_layouts(rounding, layout, rng):
    """float16 in NumPy, which has negative strides too."""
    problem = make_rounded(rounding, "float16", LAYOUT_SHAPES, rng, kind="numpy", layout=layout)
    check_rounded(problem, 4)
