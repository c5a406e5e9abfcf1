"""Variances and dead units, layer by layer, against what a few lines of torch give."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch
from fusestep.diagnostics import dead_units, layer_variances
from fusestep.nn.init import init_weights_
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


def test_variances_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2)).double().train()
    batch = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    report = layer_variances(model, batch, loss_fn=nn.functional.mse_loss)
    assert [(layer.name, layer.kind) for layer in report] == [("0", "Linear"), ("3", "Linear")]
    assert model.training
    assert all(p.grad is None for p in model.parameters())

    hidden = model[0](batch[0])
    hidden.retain_grad()
    out = model[3](hidden.tanh())
    out.retain_grad()
    nn.functional.mse_loss(out, batch[1]).backward()
    for layer, tensor, module in zip(report, (hidden, out), (model[0], model[3]), strict=True):
        rounding = 4 * tensor.numel() * 2.0**-53
        assert layer.activation_mean == pytest.approx(float(tensor.detach().mean()), rel=rounding)
        assert layer.activation_variance == pytest.approx(float(tensor.detach().var(correction=0)), rel=rounding)
        assert layer.gradient_variance == pytest.approx(float(tensor.grad.var(correction=0)), rel=rounding)
        assert layer.weight_variance == pytest.approx(float(module.weight.detach().var(correction=0)), rel=rounding)
    variances = [layer.activation_variance for layer in report]
    assert report.activation_spread == max(variances) / min(variances)


def tower(std: float | None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(10) for part in (nn.Linear(64, 64), nn.ReLU())))
    init_weights_(model)
    for layer in model[::2] if std is not None else ():
        nn.init.normal_(layer.weight, std=std)
    return model


@pytest.mark.parametrize(
    ("std", "flag"),
    [
        (None, "ok"),
        (0.01, "variance of activations and gradients differs by more than 1000"),
        (1.0, "variance of activations and gradients differs by more than 1000"),
    ],
)
def test_good_initial_values_keep_variances(std, flag):
    """He's keep them; N(0, 0.01^2) and N(0, 1) lose or gain a factor in every layer."""
    batch = torch.randn(32, 64), torch.randint(0, 64, (32,))
    assert layer_variances(tower(std), batch).flag == flag


def test_variances_of_the_gpt():
    report = layer_variances(small_runs.model(), next(iter(small_runs.data()[0])))
    assert [layer.name for layer in report][:3] == ["tokens", "blocks.0.norm1", "blocks.0.attention.qkv"]
    assert all(layer.gradient_variance > 0.0 for layer in report)
    with pytest.raises(ValueError, match=r"layer_variances: spread: expected a finite number >= 1, got 0.5"):
        layer_variances(small_runs.model(), next(iter(small_runs.data()[0])), spread=0.5)


def test_a_layer_without_gradient():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            self.side(x)
            return self.main(x)

    report = layer_variances(Side(), (torch.randn(3, 2), torch.tensor([0, 1, 0])))
    assert {layer.name: layer.gradient_variance is None for layer in report} == {"side": True, "main": False}


# --- dead units ---------------------------------------------------------------------------------------------


def test_rectifiers_that_never_open_and_sigmoids_that_are_saturated():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(5, 6), nn.Sigmoid()
    ).train()
    with torch.no_grad():
        model[0].bias[:] = 1.0
        model[0].bias[1] = -100.0
        model[3].bias[:2] = torch.tensor([50.0, -50.0])
    report = dead_units(model, torch.randn(20, 3))
    assert [(layer.name, layer.units, layer.dead) for layer in report] == [("1", 5, (1,)), ("4", 6, (0, 1))]
    assert report[0].dead_fraction == 0.2
    assert model.training
    # A unit that opens for a single observation is alive.
    inputs = torch.randn(20, 3)
    inputs[7] = 1000 * model[0].weight[1].detach().sign()
    assert dead_units(model, inputs)[0].dead == ()


def test_units_are_channels_of_images_and_features_of_sequences():
    torch.manual_seed(0)
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU())
    nn.init.constant_(images[0].bias, -100.0)
    assert dead_units(images, torch.randn(2, 1, 8, 8))[0].dead == (0, 1, 2, 3)
    report = dead_units(small_runs.model(), next(iter(small_runs.data()[0]))[0])
    assert [(layer.name, layer.units, layer.dead) for layer in report] == [
        ("blocks.0.mlp.1", 64, ()), ("blocks.1.mlp.1", 64, ()),
    ]  # fmt: skip


def test_the_mean_slope_and_the_threshold():
    model = nn.Sequential(nn.Sigmoid())
    report = dead_units(model, torch.tensor([[0.0, math.log(3.0)]]), threshold=0.2)
    assert report[0].passing == pytest.approx((1 / 4 + 3 / 16) / 2, rel=4 * 2.0**-24)
    assert report[0].dead == (1,)
    assert dead_units(nn.Linear(1, 1), torch.ones(1, 1)).rows == ()
    with pytest.raises(ValueError, match="dead_units: threshold: expected a finite number >= 0, got -1"):
        dead_units(model, torch.ones(1, 1), threshold=-1)
