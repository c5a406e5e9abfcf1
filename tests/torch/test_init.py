"""Initialisation by activation."""

from __future__ import annotations

import math

import pytest
import torch
from fusestep.nn.init import init_normal_, init_weights_, scale_residual_branches_
from torch import nn


def variance_of(layer: nn.Module) -> float:
    return float(layer.weight.detach().double().var())


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_variance_follows_the_activation(distribution):
    model = nn.Sequential(
        nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 500), nn.ReLU(), nn.Linear(500, 400), nn.LeakyReLU(0.5),
        nn.Linear(400, 100), nn.Unflatten(1, (4, 25)), nn.Conv1d(4, 400, 25), nn.GELU(),
    )  # fmt: skip
    init_weights_(model, distribution=distribution, generator=torch.Generator().manual_seed(0))
    expected = {
        0: 2 / (200 + 300),
        2: 2 / 300,
        4: 2 / ((1 + 0.5**2) * 500),
        6: 2 / (400 + 100),  # nothing known follows: linear
        8: 2 / (4 * 25),
    }
    for index, variance in expected.items():
        # Of n independent draws: standard error sqrt(2 / n), four of them, 60,000 draws at least (40,000 for the last).
        count = model[index].weight.numel()
        assert variance_of(model[index]) == pytest.approx(variance, rel=4 * math.sqrt(2 / count))
        assert not model[index].bias.detach().any()
    if distribution == "uniform":
        limit = math.sqrt(3 * expected[0])
        assert 0.99 * limit < float(model[0].weight.detach().abs().max()) <= limit


def test_activation_of_a_single_layer_and_the_rest_untouched():
    model = nn.ModuleDict(
        {"layer": nn.Linear(400, 100, bias=False), "norm": nn.LayerNorm(3), "rows": nn.Embedding(2, 3)}
    )
    rows = model["rows"].weight.detach().clone()
    init_weights_(model, "relu")
    assert variance_of(model["layer"]) == pytest.approx(2 / 400, rel=4 * math.sqrt(2 / 40_000))
    assert torch.equal(model["rows"].weight, rows)
    assert bool((model["norm"].weight == 1).all())


def test_initialisation_refuses():
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"init_weights_: activation: expected one of linear, .*, got 'swish2'\."):
        init_weights_(layer, "swish2")
    with pytest.raises(ValueError, match=r"got 'LeakyRelu'. Did you mean 'leaky_relu'\?"):
        init_weights_(layer, "LeakyRelu")
    with pytest.raises(ValueError, match=r"init_weights_: distribution: expected .*, got 'cauchy'"):
        init_weights_(layer, distribution="cauchy")
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("batch_size", [1, 16, 10_000])
def test_normal_by_batch_size(batch_size):
    model = nn.Sequential(nn.Linear(200, 300), nn.LayerNorm(300), nn.Conv1d(300, 50, 4))
    init_normal_(model, batch_size, generator=torch.Generator().manual_seed(0))
    for index in (0, 2):
        allowed = 4 * math.sqrt(2 / model[index].weight.numel())  # four standard errors, as above
        assert variance_of(model[index]) == pytest.approx(1 / math.sqrt(batch_size), rel=allowed)
        assert not model[index].bias.detach().any()
    assert bool((model[1].weight == 1).all())


def test_residual_branches_are_scaled_and_nothing_else():
    model = nn.ModuleDict({"out": nn.Linear(5, 7), "in": nn.Linear(5, 7)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scale_residual_branches_(model, ["out.weight"], depth=6)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name] / math.sqrt(12) if name == "out.weight" else before[name])


def test_other_initialisations_refuse():
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"init_normal_: batch_size: expected an integer >= 1, got 0"):
        init_normal_(layer, 0)
    with pytest.raises(ValueError, match=r"scale_residual_branches_: suffixes: expected ends of .*, got 'wait'"):
        scale_residual_branches_(layer, ["weight", "wait"], 2)
    with pytest.raises(ValueError, match=r"scale_residual_branches_: depth: expected an integer >= 1, got 0"):
        scale_residual_branches_(layer, ["weight"], 0)
    assert torch.equal(layer.weight, before)
