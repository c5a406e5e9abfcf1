"""fusestep.ops against exact.py, bit for bit, and against the references within the derived bounds."""

from __future__ import annotations

import math

import cases
import exact
import hypothesis
import hypothesis.strategies as st
import numpy as np
import problems
import pytest
import tolerances
import torch
from fusestep import _core, ops, reference
from problems import assert_same_bits, expected, flat, image

DTYPE_IDS = [f"{param}-{grad}" for param, grad in cases.DTYPES]
OPTIMIZER = pytest.mark.parametrize("optimizer", cases.OPTIMIZERS, ids=lambda o: o.name)
NAMES = ("param", "grad", "state 0", "state 1", "state 2")


def richest(optimizer):
    """The setting with the most states and options."""
    return max(optimizer.settings, key=lambda o: (len(optimizer.used_states(o)), len(o)))


def assert_as_expected(problem, want):
    for name, got, wanted in zip(NAMES, problem.flat(), want, strict=False):
        assert_same_bits(got, wanted, name)


# --- every setting, every dtype -----------------------------------------------------------------------------
@pytest.mark.parametrize("dtypes", cases.DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS)
def test_bits_over_sizes(optimizer, options, dtypes, rng):
    problem = problems.make(optimizer, options, [(n,) for n in cases.SIZES], dtypes, rng=rng)
    for number in (1, 2, 1000):
        before = problem.flat()
        assert problem.step(number) is None
        assert_as_expected(problem, expected(problem, before, number))


@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS)
def test_bits_of_extremes(optimizer, options):
    """Signed zeros, subnormal numbers, overflow, infinities and NaN."""
    for number in (1, 7):
        problem = problems.extremes(optimizer, options)
        before = problem.flat()
        problem.step(number)
        with np.errstate(all="ignore"):
            want = expected(problem, before, number)
        for name, got, wanted in zip(NAMES, problem.flat(), want, strict=False):
            if wanted is not None:
                assert_same_bits(problems.one_nan(got), problems.one_nan(wanted), name)


@pytest.mark.parametrize("dtypes", cases.DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS)
def test_against_the_reference(optimizer, options, dtypes, rng):
    """Element by element over some steps; the bound carries the errors of the earlier steps on."""
    problem = problems.make(optimizer, options, [(n,) for n in cases.SMALL_SIZES], dtypes, rng=rng)
    A = tolerances.Bounded(dtypes[0])
    function = getattr(reference, optimizer.name)
    step_options = optimizer.step_options(options)
    wide_options = {k: widen(v, A.finer) for k, v in step_options.items()}
    param, _, *states = problem.flat()
    bound = [A.array(x) for x in (param, *states)]
    truth = [widen(x, A.finer) for x in (param, *states)]
    for number in range(1, 5):
        problem.grads = [problems.array(rng.standard_normal(g.shape), dtypes[1]) for g in problem.grads]
        grad = flat(problem.grads)
        problem.step(number)

        truth = function(truth[0], widen(grad, A.finer), *truth[1:], step=number, **wide_options)
        bound = exact.step(A, optimizer.name, bound[0], A.array(grad), bound[1:], number, step_options)
        param, _, *states = problem.flat()
        for name, got, want, bounds in zip(
            ("param", *NAMES[2:]), (param, *states), truth, tolerances.bounds(bound), strict=False
        ):
            assert (got is None) == (want is None), name
            if want is not None:
                assert np.all(np.abs(got - want) <= bounds), name


def widen(value, finer):
    if isinstance(value, tuple):
        return tuple(finer(v) for v in value)
    return finer(value) if isinstance(value, float | np.ndarray) else value


# --- layouts ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("which", ["param", "grad", "both"])
@OPTIMIZER
def test_layouts(optimizer, which, kind, layout, rng):
    if kind == "torch" and layout not in cases.TORCH_LAYOUTS:
        return
    pair = {"param": (layout, None), "grad": (None, layout), "both": (layout, layout)}[which]
    problem = problems.make(
        optimizer, richest(optimizer), cases.LAYOUT_SHAPES, rng=rng, kind=kind, layout=pair, mid_run=True
    )
    between = image(problem.arrays())
    before = problem.flat()
    problem.step(3)
    want = expected(problem, before, 3)
    assert_as_expected(problem, want)
    # Written back by hand, the old elements restore every byte: nothing beside them was touched.
    for arrays, old in zip((problem.params, problem.grads, *problem.states), before, strict=True):
        if arrays is not None:
            write(arrays, old)
    assert image(problem.arrays()) == between


def write(arrays, values):
    start = 0
    for a in arrays:
        view = a.numpy() if isinstance(a, torch.Tensor) else a
        view[...] = values[start : start + view.size].reshape(view.shape)
        start += view.size


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_gradient_may_be_expanded_and_read_only(kind, rng):
    # loss = p.sum() has one number for a gradient; it is only read.
    p, g = np.ones((5, 4), np.float32), np.broadcast_to(np.float32(0.25), (5, 4))
    assert not g.flags.writeable
    params, grads = [p], [g]
    if kind == "torch":
        params, grads = [torch.from_numpy(p)], [torch.tensor(0.25).expand(5, 4)]
    assert ops.sgd_(params, grads, step=1, lr=1.0, max_grad_norm=9.0) == math.sqrt(20 * 0.25**2)
    np.testing.assert_array_equal(p, np.full((5, 4), 0.75, np.float32))


def test_parameters_that_require_grad_are_written_and_autograd_is_told():
    p = torch.nn.Parameter(torch.ones(3))
    version = p._version
    ops.sgd_([p], [torch.ones(3)], step=1, lr=0.5)
    assert p.tolist() == [0.5, 0.5, 0.5]
    assert p._version > version  # a graph that saved p now refuses to run backward


@OPTIMIZER
def test_no_parameters(optimizer):
    states = [[] if s in optimizer.used_states({}) else None for s in optimizer.states]
    function = getattr(ops, f"{optimizer.name}_")
    assert function([], [], *states, step=1) is None
    assert function([], [], *states, step=1, max_grad_norm=1.0) == 0.0


# --- clipping, folded in ------------------------------------------------------------------------------------
CLIPPING = pytest.mark.parametrize("clipping", cases.CLIPPINGS, ids=cases.describe)
SHAPES = [(1000,), (3, 5), (), (0,), (cases.SLICE + 1,), (7,)]


def measures(clipping):
    return "max_grad_norm" in clipping or "on_nonfinite" in clipping


@pytest.mark.parametrize("rewrite", [False, True], ids=["", "rewrite"])
@pytest.mark.parametrize("dtypes", cases.DTYPES, ids=DTYPE_IDS)
@CLIPPING
@OPTIMIZER
def test_clipping_bits(optimizer, clipping, dtypes, rewrite, rng):
    options = richest(optimizer)
    problem = problems.make(optimizer, options, SHAPES, dtypes, rng=rng, mid_run=True)
    before = problem.flat()

    norm = problem.step(2, rewrite_grads=rewrite, **clipping)

    assert_as_expected(problem, expected(problem, before, 2, norm, rewrite_grads=rewrite, **clipping))
    assert (norm is not None) == measures(clipping)
    if norm is not None:
        norm_type, grad_scale = clipping.get("norm_type", 2.0), clipping.get("grad_scale", 1.0)
        want = reference.grad_norm([before[1]], norm_type) / grad_scale
        numel = before[1].size
        error = tolerances.norm_error(numel, norm_type) + tolerances.reference_norm_error(numel, 1)
        assert abs(norm - want) <= error * want


@pytest.mark.parametrize("dtypes", cases.DTYPES, ids=DTYPE_IDS)
@CLIPPING
@OPTIMIZER
def test_clipping_against_the_reference(optimizer, clipping, dtypes, rng):
    """The reference clips first and steps then: the fused step gives that within the bound."""
    options = richest(optimizer)
    problem = problems.make(optimizer, options, [(300,), (3, 5), ()], dtypes, rng=rng, mid_run=True)
    A = tolerances.Bounded(dtypes[0])
    param, grad, *states = problem.flat()
    step_options = optimizer.step_options(options)

    wide = [widen(x, A.finer) for x in (param, grad, *states)]
    g = wide[1] / A.finer(clipping.get("grad_scale", 1.0))
    coefficient, error = 1.0, 3 * tolerances.U["float64"]
    norm_type = clipping.get("norm_type", 2.0)
    norm = reference.grad_norm([g], norm_type)
    if "max_grad_norm" in clipping:
        coefficient = reference.clip_coefficient(norm, clipping["max_grad_norm"], clipping.get("clip_factor"))
        error += tolerances.norm_error(g.size, norm_type) + tolerances.reference_norm_error(g.size, 1)
    g = g * A.finer(coefficient)
    if "max_grad_value" in clipping:
        (g,) = reference.clip_by_value([g], A.finer(clipping["max_grad_value"]))
    wide_options = {k: widen(v, A.finer) for k, v in step_options.items()}
    truth = getattr(reference, optimizer.name)(wide[0], g, *wide[2:], step=2, **wide_options)

    scale = A.finer(coefficient) / A.finer(clipping.get("grad_scale", 1.0))
    bound = exact.step(
        A,
        optimizer.name,
        A.array(param),
        A.array(grad),
        [A.array(s) for s in states],
        2,
        step_options,
        scale=A.number(scale, error * abs(scale)),
        max_grad_value=clipping.get("max_grad_value"),
    )

    problem.step(2, **clipping)

    param, _, *states = problem.flat()
    for got, want, tolerance in zip((param, *states), truth, tolerances.bounds(bound), strict=True):
        if want is not None:
            assert np.all(np.abs(got - want) <= tolerance)


@OPTIMIZER
def test_an_infinite_limit_only_measures(optimizer, rng):
    """For a trainer that wants to see the norm, and perhaps to limit it later."""
    problem = problems.make(optimizer, richest(optimizer), SHAPES, rng=rng, mid_run=True)
    before = problem.flat()
    norm = problem.step(2, max_grad_norm=math.inf)
    assert norm == ops.grad_norm(problem.grads)
    assert_as_expected(problem, expected(problem, before, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clipping", [{"max_grad_norm": 1.0}, {"on_nonfinite": "skip"}], ids=cases.describe)
@pytest.mark.parametrize("rewrite", [False, True], ids=["", "rewrite"])
@OPTIMIZER
def test_skip_changes_nothing(optimizer, clipping, rewrite, value, rng):
    problem = problems.make(optimizer, richest(optimizer), SHAPES, rng=rng, mid_run=True)
    problem.grads[4][cases.SLICE] = value
    before = image(problem.arrays())
    norm = problem.step(2, rewrite_grads=rewrite, **clipping)
    assert image(problem.arrays()) == before
    # All are told what it was: inf stays inf, NaN stays NaN.
    assert math.isnan(norm) if math.isnan(value) else norm == math.inf


@pytest.mark.parametrize("clipping", [{"max_grad_norm": 1.0}, {}], ids=cases.describe)
@OPTIMIZER
def test_raise_changes_nothing(optimizer, clipping, rng):
    problem = problems.make(optimizer, richest(optimizer), SHAPES, rng=rng, mid_run=True)
    problem.grads[0][17] = math.nan
    before = image(problem.arrays())
    with pytest.raises(RuntimeError, match=rf"^{optimizer.name}_: .*expected .*finite.*, got .*nan"):
        problem.step(2, on_nonfinite="raise", **clipping)
    assert image(problem.arrays()) == before


def test_an_infinite_parameter_stays_without_weight_decay():
    # -inf in a table of learned logits, where the gradient is 0: no 0 * inf may make it NaN.
    for optimizer in cases.OPTIMIZERS:
        problem = problems.make(optimizer, {"weight_decay": 0.0}, [(5,)], rng=np.random.default_rng(1))
        problem.params[0][2], problem.grads[0][2] = -math.inf, 0.0
        problem.step(1)
        assert problem.params[0][2] == -math.inf, optimizer.name


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clipping", [{}, {"max_grad_norm": 1.0, "on_nonfinite": "propagate"}], ids=cases.describe)
@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS_TORCH_HAS)
def test_propagate_spoils_what_torch_spoils(optimizer, options, clipping, value, rng):
    """Which elements end up NaN, infinite or finite, in the parameter and in every state."""
    torch_options = optimizer.torch_options(options)
    problem = problems.make(optimizer, options, [(40,)], rng=rng)
    p = torch.nn.Parameter(problem.params[0].clone())
    theirs = getattr(torch.optim, optimizer.torch_class)([p], foreach=False, **torch_options)
    for number, poison in ((1, False), (2, True), (3, False)):
        grad = torch.from_numpy(rng.standard_normal(40).astype(np.float32))
        if poison:
            grad[5] = value
        problem.grads, p.grad = [grad.clone()], grad.clone()
        problem.step(number, **clipping)
        if clipping:
            torch.nn.utils.clip_grad_norm_([p], clipping["max_grad_norm"], foreach=False)
        theirs.step()
    kinds = [kind(problem.params[0])] + [kind(s[0]) for s in problem.states if s is not None]
    state = theirs.state[p]
    want = [kind(p.detach())] + [kind(state[s.torch_name]) for s in optimizer.used_states(options)]
    for got, wanted in zip(kinds, want, strict=True):
        np.testing.assert_array_equal(got, wanted)


def kind(tensor):
    a = tensor.numpy()
    return np.where(np.isnan(a), 2, np.isinf(a))


# --- several groups: _core.optimizer_step, which fusestep.optim stands on -----------------------------------
def groups_of(optimizer, rng):
    """Two groups with different options, and what is needed to check them."""
    made = []
    for options, shapes in (
        (richest(optimizer), [(100,), (3, 5)]),
        (optimizer.settings[0], [(cases.SLICE,), ()]),
    ):
        made.append(problems.make(optimizer, options, shapes, rng=rng, mid_run=True))
    return made


def core_step(optimizer, made, steps, clipping):
    groups = [
        (p.optimizer.step_options(p.options), p.params, p.grads, tuple(p.states), s, None, None)
        for p, s in zip(made, steps, strict=True)
    ]
    return _core.optimizer_step("step", optimizer.name, groups, clipping)


@OPTIMIZER
def test_the_norm_is_over_all_groups(optimizer, rng):
    made = groups_of(optimizer, rng)
    before = [p.flat() for p in made]
    norm, applied = core_step(optimizer, made, [2, 3], {"max_grad_norm": 0.5})
    grads = [b[1] for b in before]
    numel = sum(g.size for g in grads)
    error = tolerances.norm_error(numel) + tolerances.reference_norm_error(numel, 2)
    assert applied
    assert abs(norm - reference.grad_norm(grads)) <= error * norm
    for problem, b, number in zip(made, before, [2, 3], strict=True):
        assert_as_expected(problem, expected(problem, b, number, norm, max_grad_norm=0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@OPTIMIZER
def test_step_tensors_count_the_steps_that_were_made(optimizer, dtype, rng):
    made = groups_of(optimizer, rng)
    # One count each: a parameter that had no gradient for a while is behind the others.
    steps = [
        [torch.tensor(1.0, dtype=dtype), torch.tensor(4.0, dtype=dtype)],
        [torch.tensor(0.0, dtype=dtype)] * 1,
    ]
    steps[1].append(torch.tensor(6.0, dtype=dtype))
    singles = [
        (
            problems.Problem(
                p.optimizer,
                p.options,
                [p.params[i]],
                [p.grads[i]],
                [None if s is None else [s[i]] for s in p.states],
            ),
            steps[g][i],
        )
        for g, p in enumerate(made)
        for i in range(2)
    ]
    before = [single.flat() for single, _ in singles]
    counts = [int(step) for _, step in singles]

    norm, applied = core_step(optimizer, made, steps, {})

    assert (norm, applied) == (None, True)
    for (single, step), b, count in zip(singles, before, counts, strict=True):
        assert step.item() == count + 1
        assert_as_expected(single, expected(single, b, count + 1))

    made[1].grads[0][3] = math.inf
    after = [single.flat() for single, _ in singles]
    norm, applied = core_step(optimizer, made, steps, {"max_grad_norm": 1.0})
    assert (norm, applied) == (math.inf, False)
    for (single, step), a, count in zip(singles, after, counts, strict=True):
        assert step.item() == count + 1
        for got, want in zip(single.flat()[2:], a[2:], strict=True):
            assert_same_bits(got, want)
        assert_same_bits(single.flat()[0], a[0])


def test_steps_as_a_list_of_ints(rng):
    optimizer = cases.BY_NAME["adamw"]
    problem = problems.make(optimizer, {}, [(5,), (6,)], rng=rng, mid_run=True)
    parts = [
        problems.Problem(
            optimizer,
            {},
            [problem.params[i]],
            [problem.grads[i]],
            [None if s is None else [s[i]] for s in problem.states],
        )
        for i in range(2)
    ]
    before = [part.flat() for part in parts]
    core_step(optimizer, [problem], [[3, 70]], {})
    for part, b, number in zip(parts, before, (3, 70), strict=True):
        assert_as_expected(part, expected(part, b, number))


def test_torch_s_param_group_is_taken_as_it_is(rng):
    optimizer = cases.BY_NAME["adam"]
    problem = problems.make(optimizer, {"lr": 0.5}, [(5,)], rng=rng)
    group = torch.optim.Adam([torch.zeros(3)], lr=0.1).param_groups[0]
    group["lr"] = torch.tensor(0.5)
    before = problem.flat()
    groups = [(group, problem.params, problem.grads, tuple(problem.states), 1, None, None)]
    _core.optimizer_step("step", "adam", groups, {})
    assert_as_expected(problem, expected(problem, before, 1))


def test_the_core_declares_what_the_cases_declare():
    declared = _core.optimizers()
    assert declared.keys() == cases.BY_NAME.keys()
    for optimizer in cases.OPTIMIZERS:
        assert declared[optimizer.name]["states"] == [s.name for s in optimizer.states]


@OPTIMIZER
def test_the_defaults_are_the_reference_s(optimizer):
    import inspect

    parameters = inspect.signature(getattr(reference, optimizer.name)).parameters
    want = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "step"}
    assert _core.optimizers()[optimizer.name]["options"] == want
    ours = inspect.signature(getattr(ops, f"{optimizer.name}_")).parameters
    assert {name: ours[name].default for name in want} == want


# --- anything together --------------------------------------------------------------------------------------
@st.composite
def any_step(draw):
    optimizer = draw(st.sampled_from(cases.OPTIMIZERS))
    options = dict(draw(st.sampled_from(optimizer.settings)))
    clipping = dict(draw(st.sampled_from(({}, *cases.CLIPPINGS))))
    clipping["rewrite_grads"] = draw(st.booleans())
    kind = draw(st.sampled_from(["torch", "numpy"]))
    layouts = st.sampled_from(list(cases.LAYOUTS) if kind == "numpy" else cases.TORCH_LAYOUTS)
    dtypes = draw(st.sampled_from([d for d in cases.DTYPES if kind == "torch" or d[1] != "bfloat16"]))
    shapes = draw(st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), max_size=6))
    layout = (draw(layouts), draw(layouts))
    return (
        optimizer,
        options,
        clipping,
        kind,
        dtypes,
        shapes,
        layout,
        draw(st.integers(1, 10**6)),
        draw(st.integers(0, 2**32 - 1)),
    )


@hypothesis.given(any_step())
@hypothesis.settings(max_examples=300)
def test_any_step(drawn):
    optimizer, options, clipping, kind, dtypes, shapes, layout, number, seed = drawn
    problem = problems.make(
        optimizer,
        options,
        [(3,), *shapes],
        dtypes,
        rng=np.random.default_rng(seed),
        kind=kind,
        layout=layout,
        mid_run=True,
    )
    before = problem.flat()
    norm = problem.step(number, **clipping)
    assert_as_expected(problem, expected(problem, before, number, norm, **clipping))
