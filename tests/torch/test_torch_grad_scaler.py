"""torch.amp.GradScaler: its scale and its found_inf go into the fused step."""

from __future__ import annotations

import math

import fusestep.optim
import pytest
import torch
from torch.amp import GradScaler
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
)


def scaled_step(scaler, optimizer, params, step, *, poison=None, before=lambda: None):
    """A step on a loss whose gradients are make_grads(step); `poison` takes the place of one element."""
    grads = make_grads(step, params)
    if poison is not None:
        grads[1][3] = poison
    optimizer.zero_grad()
    loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
    scaler.scale(loss).backward()
    before()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("row, options", **COMMON)
def test_agrees_with_torch(row, options, unscale):
    """Including the steps 3 and 7, which both leave out."""
    results, scales = [], []
    for dtype in (torch.float32, torch.float64):
        for cls in (ours(row), theirs(row)):
            params = make_params(dtype)
            optimizer = cls(params, **options)
            scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=2)
            for step in range(1, STEPS + 1):
                poison = {3: math.inf, 7: math.nan}.get(step)
                before = (lambda: scaler.unscale_(optimizer)) if unscale else (lambda: None)  # noqa: B023
                scaled_step(scaler, optimizer, params, step, poison=poison, before=before)
            results.append(snapshot(optimizer, params))
            scales.append(scaler.get_scale())
            if cls is ours(row):
                assert optimizer.skipped_steps == 2
    assert scales == [scales[0]] * 4
    assert scales[0] != 1024.0
    assert_as_exact_as_torch(*results)


@pytest.mark.parametrize("row, options", **COMMON)
def test_power_of_two_scale_changes_no_bit(row, options):
    results = []
    for scaler in (GradScaler("cpu", init_scale=2.0**12), GradScaler("cpu", enabled=False)):
        params = make_params()
        optimizer = ours(row)(params, **options, max_grad_norm=0.5)
        norms = []
        for step in range(1, 5):
            scaled_step(scaler, optimizer, params, step)
            norms.append(optimizer.grad_norm)
        results.append((snapshot(optimizer, params), norms))
    assert_same_bits(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]  # the norm is that of the unscaled gradients


@pytest.mark.parametrize("row, options", **COMMON)
def test_found_inf_changes_nothing(row, options):
    params = make_params()
    optimizer = ours(row)(params, **options)
    scaler = GradScaler("cpu", init_scale=8.0)
    before = snapshot(optimizer, params)
    scaled_step(scaler, optimizer, params, 1, poison=math.inf)
    assert_same_bits(snapshot(optimizer, params), before)  # no state was made either
    scaled_step(scaler, optimizer, params, 2)
    before = snapshot(optimizer, params)
    scaled_step(scaler, optimizer, params, 3, poison=math.nan)
    assert_same_bits(snapshot(optimizer, params), before)
    assert optimizer.skipped_steps == 2
    assert optimizer.grad_norm is None
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("on_nonfinite", [None, "skip", "raise", "propagate"])
def test_found_inf_comes_before_on_nonfinite(on_nonfinite):
    """The scaler expects to lower its scale and go on, whatever a run without it should do."""
    params = make_params()
    optimizer = fusestep.optim.AdamW(params, max_grad_norm=1.0, on_nonfinite=on_nonfinite)
    scaler = GradScaler("cpu", init_scale=8.0)
    before = snapshot(optimizer, params)
    scaled_step(scaler, optimizer, params, 1, poison=-math.inf)
    assert_same_bits(snapshot(optimizer, params), before)
    assert optimizer.skipped_steps == 1
    assert optimizer.grad_norm == math.inf
    assert scaler.get_scale() == 4.0


def test_gradients_are_unscaled_when_rewritten():
    params = make_params()
    optimizer = fusestep.optim.SGD(params, lr=0.1, rewrite_grads=True)
    scaler = GradScaler("cpu", init_scale=64.0)
    scaled_step(scaler, optimizer, params, 1)
    for p, g in zip(params, make_grads(1, params), strict=True):
        assert torch.equal(p.grad, g)


def test_low_precision_gradients_of_float32_parameters():
    params = make_params()
    for p in params:
        p.grad_dtype = torch.bfloat16
    optimizer = fusestep.optim.AdamW(params, max_grad_norm=0.5)
    scaler = GradScaler("cpu", init_scale=16.0)
    scaled_step(scaler, optimizer, params, 1)
    assert params[0].grad.dtype == torch.bfloat16
    plain = make_params()
    expected = fusestep.optim.AdamW(plain, max_grad_norm=0.5)
    for p, g in zip(plain, make_grads(1, plain), strict=True):
        p.grad = g.bfloat16().float()
    expected.step()
    assert_same_bits(snapshot(optimizer, params), snapshot(expected, plain))


def test_a_scale_of_the_users_own():
    """torch's scaler multiplies a grad_scale that is set already; without a scaler it stands for itself."""
    params, plain = make_params(), make_params()
    optimizer, expected = fusestep.optim.AdamW(params), fusestep.optim.AdamW(plain)
    optimizer.grad_scale = torch.tensor(4.0)
    for p, q, g in zip(params, plain, make_grads(1, params), strict=True):
        p.grad, q.grad = 4.0 * g, g
    optimizer.step()
    expected.step()
    assert_same_bits(snapshot(optimizer, params), snapshot(expected, plain))


def test_found_inf_of_another_process():
    """Distributed scalers set it for an overflow elsewhere: this one's norm is then finite, and unscaled."""
    params = make_params()
    optimizer = fusestep.optim.AdamW(params, max_grad_norm=1.0)
    for p, g in zip(params, make_grads(1, params), strict=True):
        p.grad = 4.0 * g
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    before = snapshot(optimizer, params)
    optimizer.step()
    assert_same_bits(snapshot(optimizer, params), before)
    assert optimizer.skipped_steps == 1
    skipped = optimizer.grad_norm
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert optimizer.grad_norm == skipped
    assert not torch.equal(params[0], before["params[0]"])
