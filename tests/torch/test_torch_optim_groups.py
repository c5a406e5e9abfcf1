"""Parameter groups, rates, schedulers, closures and hooks of fusestep.optim, as of torch.optim."""

from __future__ import annotations

import cases
import fusestep.optim
import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch_pairs import (
    COMMON,
    STEPS,
    assert_as_exact_as_torch,
    assert_same_bits,
    make_grads,
    make_params,
    ours,
    snapshot,
    theirs,
    train,
)

ROWS = {"argvalues": cases.OPTIMIZERS, "ids": [row.name for row in cases.OPTIMIZERS]}


@pytest.mark.parametrize("row, options", **COMMON)
def test_add_param_group(row, options):
    results = []
    for dtype in (torch.float32, torch.float64):
        for cls in (ours(row), theirs(row)):
            params = make_params(dtype)
            optimizer = cls(params[:2], **options)
            train(optimizer, params, range(1, 4))
            optimizer.add_param_group({"params": iter(params[2:]), "lr": 0.005})
            train(optimizer, params, range(4, STEPS + 1))
            assert optimizer.param_groups[1]["weight_decay"] == options["weight_decay"]
            results.append(snapshot(optimizer, params))
    assert_as_exact_as_torch(*results)


def test_named_parameters():
    module = torch.nn.Linear(3, 2)
    optimizer = fusestep.optim.AdamW(module.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state[module.weight]["step"].item() == 1


def test_initial_accumulator_value_of_a_group():
    params = make_params()
    groups = [{"params": params[:1]}, {"params": params[1:2], "initial_accumulator_value": 2.0}]
    optimizer = fusestep.optim.Adagrad(groups, initial_accumulator_value=0.5)
    optimizer.add_param_group({"params": params[2:], "initial_accumulator_value": 3.0})
    train(optimizer, params, range(1, 2))
    for p, start in zip(params, (0.5, 2.0, 3.0, 3.0, 3.0), strict=True):
        assert torch.equal(optimizer.state[p]["sum"], torch.full_like(p, start).addcmul(p.grad, p.grad))


def test_decoupled_weight_decay_of_adam_is_adamw():
    results = []
    for cls, options in ((fusestep.optim.Adam, {"decoupled_weight_decay": True}), (fusestep.optim.AdamW, {})):
        params = make_params()
        optimizer = cls(params, weight_decay=0.3, **options)
        train(optimizer, params)
        results.append(snapshot(optimizer, params))
    assert_same_bits(*results)


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(
        o,
        0.05,
        total_steps=STEPS + 1,
        cycle_momentum="betas" in o.defaults or bool(o.defaults.get("momentum")),
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.8)], [3]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("row, options", **COMMON)
def test_schedulers(row, options, scheduler):
    if row.name == "sgd":  # OneCycleLR moves the momentum, and dampening with it would be another case
        options = {key: value for key, value in options.items() if key != "dampening"}
    results, rates = [], []
    for dtype in (torch.float32, torch.float64):
        for cls in (ours(row), theirs(row)):
            params = make_params(dtype)
            optimizer = cls(params, **options)
            schedule = SCHEDULERS[scheduler](optimizer)
            for step in range(1, STEPS + 1):
                train(optimizer, params, range(step, step + 1))
                schedule.step(*([1.0] if scheduler == "plateau" else []))
            rates.append({k: v for k, v in optimizer.param_groups[0].items() if k in ("lr", "betas", "momentum")})
            results.append(snapshot(optimizer, params))
    assert all(r == rates[0] for r in rates)
    assert_as_exact_as_torch(*results)


def test_forms_differ_once_the_rate_changes():
    """form="classical": a velocity keeps the rate of its time. decay="independent": no rate in the decay."""
    p = Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = fusestep.optim.SGD([p], lr=0.5, momentum=0.5, form="classical")
    for lr in (0.5, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert p.tolist() == [1 - 0.5 - 0.25] * 4
    optimizer = fusestep.optim.AdamW([p], lr=0.0, weight_decay=0.5, decay="independent")
    optimizer.step()
    assert p.tolist() == [0.125] * 4


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("row, options", **COMMON)
def test_lr_as_a_tensor(row, options, shape):
    results = []
    for lr in (0.125, torch.full(shape, 0.125)):
        params = make_params()
        optimizer = ours(row)(params, **{**options, "lr": lr})
        train(optimizer, params, range(1, 4))
        if isinstance(lr, torch.Tensor):
            lr.fill_(0.0625)
        else:
            optimizer.param_groups[0]["lr"] = 0.0625
        train(optimizer, params, range(4, 6))
        results.append(snapshot(optimizer, params))
    assert_same_bits(results[1], results[0])


def test_betas_as_tensors():
    results = []
    for betas in ((0.5, 0.75), (torch.tensor(0.5), torch.tensor(0.75))):
        params = make_params()
        optimizer = fusestep.optim.Adam(params, betas=betas)
        train(optimizer, params, range(1, 4))
        results.append(snapshot(optimizer, params))
    assert_same_bits(results[1], results[0])


@pytest.mark.parametrize("row, options", **COMMON)
def test_closure(row, options):
    params = [Parameter(torch.ones(3))]
    optimizer = ours(row)(params, **options)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert optimizer.step() is None
    assert len(calls) == 1
    assert not torch.equal(params[0], torch.ones(3))


def test_hooks():
    params = make_params()
    optimizer = fusestep.optim.AdamW(params)
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", o, dict(o.state))))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(("post", o, dict(o.state))))
    handle = register_optimizer_step_post_hook(lambda o, a, k: seen.append(("global", o, None)))
    try:
        train(optimizer, params, range(1, 2))
    finally:
        handle.remove()
    assert [(name, o) for name, o, _ in seen] == [
        ("pre", optimizer),
        ("post", optimizer),
        ("global", optimizer),
    ]
    assert len(seen[0][2]) == 0
    assert len(seen[1][2]) == len(params)


def test_profiler_sees_the_step():
    params = make_params()
    optimizer = fusestep.optim.RMSprop(params)
    train(optimizer, params, range(1, 2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert "Optimizer.step#RMSprop.step" in [event.key for event in profile.key_averages()]


def test_compiled_training_step_takes_the_step():
    params = make_params()
    plain = make_params()
    optimizer, expected = fusestep.optim.AdamW(params), fusestep.optim.AdamW(plain)

    @torch.compile(backend="eager")
    def step():
        optimizer.step()

    for k in range(1, 4):
        train(expected, plain, range(k, k + 1))
        for p, g in zip(params, make_grads(k, params), strict=True):
            p.grad = g
        step()
    assert_same_bits(snapshot(optimizer, params), snapshot(expected, plain))
