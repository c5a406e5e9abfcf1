"""Gradient health: layer by layer, against thresholds, with the update that an optimizer makes."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch
from fusestep import optim
from fusestep.diagnostics import gradient_health, model_health
from fusestep.losses import cross_entropy
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


def test_health_of_the_gpt():
    model = small_runs.model()
    inputs, targets = next(iter(small_runs.data()[0]))
    cross_entropy(model(inputs), targets).backward()
    layers = gradient_health(model)
    assert {layer.flag for layer in layers} == {"ok"}
    assert [layer.name for layer in layers][:3] == ["tokens", "blocks.0.norm1", "blocks.0.attention.qkv"]
    head = layers[0]
    assert head.grad_norm == pytest.approx(float(model.tokens.weight.grad.double().norm()), rel=1e-12)
    assert head.param_norm == pytest.approx(float(model.tokens.weight.detach().double().norm()), rel=1e-12)


def deep(depth: int, scale: float) -> nn.Sequential:
    """Sigmoids, each of which passes at most a quarter of a gradient on, or plain factors."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Sigmoid() if scale < 1 else nn.Identity()) for _ in range(depth)]
    model = nn.Sequential(*layers)
    for layer in layers:
        nn.init.normal_(layer[0].weight, std=scale)
    return model


def test_vanishing_gradients():
    model = deep(30, 0.3)
    model(torch.randn(16, 8)).square().mean().backward()
    flags = [layer.flag for layer in gradient_health(model)]
    assert flags[0] == "vanishing"
    assert flags[-1] == "ok"


def test_exploding_gradients():
    model = deep(6, 3.0)
    model(torch.randn(16, 8)).square().mean().backward()
    assert gradient_health(model)[0].flag == "exploding"
    assert gradient_health(model, exploding=1e30)[0].flag == "ok"


def test_missing_and_nonfinite_gradients():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "zero": nn.Linear(2, 2)})
    (model["used"](torch.ones(1, 2)).sum() * math.inf + 0.0 * model["zero"](torch.ones(1, 2)).sum()).backward()
    flags = {layer.name: layer.flag for layer in gradient_health(model)}
    assert flags == {"used": "not finite", "unused": "no gradient", "zero": "vanishing"}
    with pytest.raises(ValueError, match="gradient_health: vanishing"):
        gradient_health(model, vanishing=-1.0)


def test_norms_largest_elements_and_updates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    lr = 0.3
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    before = [p.detach().clone() for p in model.parameters()]
    report = model_health(model, batch, optimizer, loss_fn=nn.functional.mse_loss)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.state_dict()["state"] == {}
    assert model.training

    model.eval()
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    for name, layer in zip(("0", "3"), report, strict=True):
        gradient = torch.cat([p.grad.flatten() for p in model.get_submodule(name).parameters()])
        weights = torch.cat([p.detach().flatten() for p in model.get_submodule(name).parameters()])
        assert layer.name == name
        # Sums of up to 20 squares, a root, a quotient: less than 20 roundings of 1.1e-16.
        assert layer.grad_norm == pytest.approx(float(gradient.norm()), rel=20 * 2.0**-53)
        assert layer.grad_max == float(gradient.abs().max())
        # The first step of momentum is the gradient itself; p - lr g is rounded at p's size.
        expected = lr * float(gradient.norm()) / float(weights.norm())
        assert layer.update_ratio == pytest.approx(expected, rel=20 * 2.0**-53, abs=2.0**-53 * len(weights))
        assert layer.flag == "ok"


def test_a_diagnosis_in_the_middle_of_a_run_changes_no_bit_of_it():
    def run(diagnosed):
        model = small_runs.model()
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(1)
        for step, batch in zip(range(6), small_runs.data()[0], strict=False):
            if diagnosed and step % 2 == 1:
                model_health(model, batch, optimizer)
            optimizer.zero_grad()
            cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(run(True), run(False))
