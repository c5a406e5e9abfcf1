"""The float64 references: against torch.optim over every declared case, and against numbers by hand."""

from __future__ import annotations

import math

import cases
import exact
import numpy as np
import pytest
import tolerances
import torch
from fusestep import reference

STEPS = 5


def widest(value):
    """Data or an option as np.longdouble, so that the reference's own rounding is out of the comparison."""
    if isinstance(value, tuple):
        return tuple(np.longdouble(v) for v in value)
    return np.longdouble(value) if isinstance(value, float | np.ndarray) else value


def torch_run(optimizer, options, param, grads):
    """[(param, *states)] after each step of torch.optim, one tensor at a time, in float64."""
    p = torch.nn.Parameter(torch.from_numpy(param.copy()))
    torch_optimizer = getattr(torch.optim, optimizer.torch_class)([p], foreach=False, **options)
    results = []
    for grad in grads:
        p.grad = torch.from_numpy(grad.copy())
        torch_optimizer.step()
        state = torch_optimizer.state[p]
        results.append(
            [p.detach().numpy().copy()]
            + [state[s.torch_name].numpy().copy() if s.torch_name in state else None for s in optimizer.states]
        )
    return results


@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS_TORCH_HAS)
def test_against_torch(optimizer, options, rng):
    torch_options = optimizer.torch_options(options)
    param = rng.standard_normal((7, 11))
    grads = [rng.standard_normal((7, 11)) for _ in range(STEPS)]
    initial = optimizer.initial_states(options, param.shape, "float64")
    step_options = optimizer.step_options(options)
    wide_options = {key: widest(value) for key, value in step_options.items()}

    A = tolerances.Bounded("float64", fused=False)
    bound = [A.array(x) for x in (param, *initial)]
    truth = [None if x is None else widest(x) for x in (param, *initial)]
    function = getattr(reference, optimizer.name)
    results = torch_run(optimizer, torch_options, param, grads)
    for number, grad, theirs in zip(range(1, STEPS + 1), grads, results, strict=True):
        truth = function(truth[0], widest(grad), *truth[1:], step=number, **wide_options)
        bound = exact.step(
            A,
            optimizer.name,
            bound[0],
            A.array(grad),
            bound[1:],
            number,
            optimizer.step_options(torch_options),
        )
        for i, (ours, their, tolerance) in enumerate(zip(truth, theirs, tolerances.bounds(bound), strict=True)):
            if i > 0 and options.get("form") == "classical":
                continue  # the velocity is -lr times torch's buffer: the parameter says whether it is right
            assert (ours is None) == (their is None), optimizer.states[i - 1].name
            if ours is not None:
                assert np.all(np.abs(ours - their) <= tolerance)


@pytest.mark.parametrize("optimizer, options", **cases.SETTINGS)
def test_float32_input_is_computed_in_float64_and_left_alone(optimizer, options, rng):
    param, grad = rng.standard_normal((2, 3, 5)).astype(np.float32)
    states = optimizer.initial_states(options, param.shape, "float32")
    inputs = [param, grad, *states]
    before = [None if x is None else x.copy() for x in inputs]
    function = getattr(reference, optimizer.name)
    options = optimizer.step_options(options)

    narrow = function(*inputs, step=2, **options)
    wide = function(*[None if x is None else x.astype(np.float64) for x in inputs], step=2, **options)

    for a, b in zip(narrow, wide, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == np.float64
            np.testing.assert_array_equal(a, b)
    for now, then in zip(inputs, before, strict=True):
        assert (now is None and then is None) or np.array_equal(now, then)


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS, ids=lambda o: o.name)
def test_the_defaults_are_torch_s(optimizer):
    import inspect

    ours = inspect.signature(getattr(reference, optimizer.name)).parameters
    theirs = inspect.signature(getattr(torch.optim, optimizer.torch_class)).parameters
    options = {name for name, parameter in ours.items() if parameter.kind is parameter.KEYWORD_ONLY} - {"step"}
    assert {name: ours[name].default for name in options & theirs.keys()} == {
        name: theirs[name].default for name in options & theirs.keys()
    }
    # What torch has besides is about how it runs, not about what is computed.
    how = {"params", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
    assert theirs.keys() - options - how == {s.initial_option for s in optimizer.states} - {None}


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS, ids=lambda o: o.name)
def test_every_hyperparameter_is_declared_away_from_its_default(optimizer):
    import inspect

    parameters = inspect.signature(getattr(reference, optimizer.name)).parameters
    options = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "step"}
    varied = {key for setting in optimizer.settings for key, value in setting.items() if options.get(key) != value}
    assert options.keys() <= varied


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS, ids=lambda o: o.name)
def test_an_infinite_parameter_stays_without_weight_decay(optimizer):
    function = getattr(reference, optimizer.name)
    states = optimizer.initial_states({}, (), "float64")
    assert function(-math.inf, 0.0, *states, step=1, weight_decay=0.0)[0] == -math.inf


# --- by hand: one element, numbers that come out short ------------------------------------------------------
def close(got, *want):
    """Within the rounding of a dozen operations on numbers of this size."""
    np.testing.assert_allclose([float(x) for x in got if x is not None], want, rtol=12 * tolerances.U["float64"])


def test_adam_by_hand():
    # g = 1 + 0.5 * 2 = 2; m = 0.1 * 2, v = 0.01 * 4; both corrections undo the factor: 2 / (sqrt(4) + 2) =
    # 0.5
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 2.0}
    close(reference.adam(2.0, 1.0, 0.0, 0.0, step=1, weight_decay=0.5, **options), 2 - 0.05, 0.2, 0.04)
    # step 2: m = 0.2 * 0.9 = 0.18 over 1 - 0.81, v = 0.04 * 0.99 over 1 - 0.9801, g = 0
    want = 2 - 0.1 * (0.18 / 0.19) / (math.sqrt(0.0396 / 0.0199) + 2)
    close(reference.adam(2.0, 0.0, 0.2, 0.04, step=2, **options), want, 0.18, 0.0396)
    # amsgrad: 0.16 was the largest v; its root over that of 1 - 0.99**2
    want = 2 - 0.1 * (0.18 / 0.19) / (math.sqrt(0.16 / 0.0199) + 2)
    close(reference.adam(2.0, 0.0, 0.2, 0.04, 0.16, step=2, amsgrad=True, **options), want, 0.18, 0.0396, 0.16)


def test_adamw_by_hand():
    # The update of g = 1 at step 1 is 1 / (1 + 1); only the decay differs.
    options = {"step": 1, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1.0, "weight_decay": 0.2}
    close(reference.adamw(3.0, 1.0, 0.0, 0.0, **options), 3 * 0.98 - 0.05, 0.1, 0.01)
    close(reference.adamw(3.0, 1.0, 0.0, 0.0, decay="independent", **options), 3 * 0.8 - 0.05, 0.1, 0.01)
    # The gradient climbed, not descended; the decay does not turn round.
    close(reference.adamw(3.0, 1.0, 0.0, 0.0, maximize=True, **options), 3 * 0.98 + 0.05, -0.1, 0.01)


def test_rmsprop_by_hand():
    # s = 0.75 * 4 + 0.25 * 16 = 7, and with a = 0.75 * 2 + 0.25 * 4 = 2.5 the variance is 0.75
    close(reference.rmsprop(1.0, 4.0, 4.0, step=1, lr=0.5, alpha=0.75, eps=1.0), 1 - 2 / (math.sqrt(7) + 1), 7.0)
    centered = reference.rmsprop(1.0, 4.0, 4.0, None, 2.0, step=1, lr=0.5, alpha=0.75, eps=1.0, centered=True)
    close(centered, 1 - 2 / (math.sqrt(0.75) + 1), 7.0, 2.5)
    # 3 * 0.5 + 4 / (3 + 1) in the buffer: s stays 9 with alpha = 1
    close(
        reference.rmsprop(1.0, 4.0, 9.0, 3.0, step=1, lr=0.5, alpha=1.0, eps=1.0, momentum=0.5),
        -0.25,
        9.0,
        2.5,
    )
    # A variance that rounding makes negative counts as none.
    assert reference.rmsprop(1.0, 1.0, 1.0, None, 2.0, step=1, lr=0.5, alpha=1.0, eps=1.0, centered=True)[0] == 0.5


def test_adagrad_by_hand():
    # s = 7 + 9 = 16 and the rate of step 3 is 0.5 / (1 + 2 * 0.5)
    close(reference.adagrad(1.0, 3.0, 7.0, step=3, lr=0.5, lr_decay=0.5, eps=2.0), 1 - 0.25 * 3 / 6, 16.0)


def test_sgd_by_hand():
    close(reference.sgd(1.0, 2.0, step=1, lr=0.25, weight_decay=2.0), 0.0)
    # torch's form. Step 1: the buffer is the gradient. Step 2: 0.5 * 2 + 0.75 * 4 = 4.
    momentum = {"lr": 0.25, "momentum": 0.5, "dampening": 0.25}
    close(reference.sgd(1.0, 2.0, 99.0, step=1, **momentum), 0.5, 2.0)
    close(reference.sgd(0.5, 4.0, 2.0, step=2, **momentum), -0.5, 4.0)
    # Nesterov: b = 0.5 * 2 + 4 = 5 and one look further, 4 + 0.5 * 5
    close(reference.sgd(0.5, 4.0, 2.0, step=2, lr=0.25, momentum=0.5, nesterov=True), 0.5 - 6.5 / 4, 5.0)
    # The classical form: v = 0.5 * 0 - 0.25 * 0.75 * 2
    close(reference.sgd(1.0, 2.0, 0.0, step=1, form="classical", **momentum), 0.625, -0.375)
    # Nesterov: v = 0.5 * -0.5 - 0.25 * 4 = -1.25, and 0.5 * v - 0.25 * 4
    nesterov = reference.sgd(0.5, 4.0, -0.5, step=2, lr=0.25, momentum=0.5, nesterov=True, form="classical")
    close(nesterov, 0.5 - 1.625, -1.25)


def test_the_two_forms_of_momentum_part_when_the_rate_changes():
    # One gradient, then none, at a tenth of the rate: torch moves by the new rate, the classical velocity
    # remembers.
    results = {}
    for form in ("torch", "classical"):
        p, b = reference.sgd(0.0, 1.0, 0.0, step=1, lr=1.0, momentum=0.5, form=form)
        results[form] = float(reference.sgd(p, 0.0, b, step=2, lr=0.1, momentum=0.5, form=form)[0])
    assert results == {"torch": -1.05, "classical": -1.5}


# --- clipping -----------------------------------------------------------------------------------------------
def test_norms_by_hand():
    grads = [np.array([[3.0, -4.0]]), np.array(12.0), np.zeros((0, 3))]
    assert reference.grad_norm(grads) == 13.0
    assert reference.grad_norm(grads, 1) == 19.0
    assert reference.grad_norm(grads, math.inf) == 12.0
    assert reference.grad_norm([]) == reference.grad_norm([np.zeros((0, 3))], 1) == 0.0
    assert reference.grad_norm([np.array([3e200, 4e200])]) == pytest.approx(5e200, rel=4 * tolerances.U["float64"])
    assert math.isnan(reference.grad_norm([np.array([1.0, math.nan]), np.array([math.inf])]))
    assert reference.grad_norm([np.array([1.0, -math.inf])]) == math.inf


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 0.7, 1e3, math.inf])
def test_clip_by_norm_against_torch(norm_type, max_norm, rng):
    grads = [rng.standard_normal(shape) for shape in ((3, 4), (5,), ())]
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.tensor(g)
    theirs = torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type, foreach=False).item()

    clipped, norm = reference.clip_by_norm(grads, max_norm, norm_type)

    # torch adds up to 12 terms one after another: 12 + 3 tensors + a root; the coefficient and the product
    # add three.
    numel = sum(g.size for g in grads)
    error = tolerances.reference_norm_error(numel, 3) + (12 + 3 + 1) * tolerances.U["float64"]
    assert abs(norm - theirs) <= error * norm
    for p, ours in zip(params, clipped, strict=True):
        np.testing.assert_allclose(ours, p.grad.numpy(), rtol=error + 3 * tolerances.U["float64"], atol=0)


def test_the_seed_s_factor():
    grads = [np.array([3.0, -4.0])]
    clipped, norm = reference.clip_by_norm(grads, 4.0, clip_factor=0.5)
    assert norm == 5.0
    np.testing.assert_array_equal(clipped[0], [1.5, -2.0])
    clipped, _ = reference.clip_by_norm(grads, 5.0, clip_factor=0.5)  # not over the threshold
    np.testing.assert_array_equal(clipped[0], grads[0])


def test_clip_coefficient_of_a_norm_that_is_not_finite():
    # As torch.nn.utils.clip_grad_norm_: inf stops everything that is finite, NaN spoils everything.
    assert reference.clip_coefficient(math.inf, 1.0) == 0.0
    assert math.isnan(reference.clip_coefficient(math.nan, 1.0))
    assert reference.clip_coefficient(math.inf, 1.0, clip_factor=0.5) == 0.5
    assert math.isnan(reference.clip_coefficient(math.nan, 1.0, clip_factor=0.5))


def test_clip_by_value():
    clipped = reference.clip_by_value([np.array([-3.0, -0.5, 0.5, 3.0, math.inf, math.nan])], 1.0)
    np.testing.assert_array_equal(clipped[0], [-1.0, -0.5, 0.5, 1.0, 1.0, math.nan])


def test_accumulated_gradients_of_rmsprop_and_adagrad():
    # For a constant gradient: (1 - rho^k) g^2 against k g^2.
    rho, g, steps = 0.9, np.array([0.5, -2.0]), 7
    p, zeros = np.zeros(2), np.zeros(2)
    mean = total = zeros
    for step in range(1, steps + 1):
        mean = reference.rmsprop(p, g, mean, step=step, alpha=rho)[1]
        total = reference.adagrad(p, g, total, step=step)[1]
    np.testing.assert_allclose(mean, (1 - rho**steps) / steps * total, rtol=1e-14)
