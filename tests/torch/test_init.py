"""Initialisation by activation."""

from __future__ import annotations

import math

import pytest
import torch
from fusestep.nn.init import init_weights_
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
    with pytest.raises(ValueError, match=r"init_weights_: activation: expected one of linear, .*, got 'swish2'"):
        init_weights_(layer, "swish2")
    with pytest.raises(ValueError, match=r"init_weights_: distribution: expected .*, got 'cauchy'"):
        init_weights_(layer, distribution="cauchy")
    assert torch.equal(layer.weight, before)
