"""The learning-rate range test: on a function whose best rates are known, and on a model."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch
from fusestep import optim
from fusestep.diagnostics import rate_range
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn

CURVATURE = 4.0  # of the loss 2 w^2: gradient descent diverges from a rate of 2 / CURVATURE on


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, inputs):
        return self.w


def parabola(w, _):
    return CURVATURE / 2 * w.square().sum()


def test_a_parabola():
    model = Point()
    optimizer = optim.SGD(model.parameters(), lr=0.123, momentum=0.0)
    nothing = torch.zeros(1)
    report = rate_range(model, optimizer, [(nothing, nothing)], lowest=1e-4, highest=100.0, steps=61, loss_fn=parabola)
    factor = (100.0 / 1e-4) ** (1 / 60)
    for step, rate in enumerate(report.rates):
        assert rate == pytest.approx(1e-4 * factor**step, rel=1e-12)
    w, expected = 1.0, []
    for rate in report.rates:
        expected.append(3 * CURVATURE / 2 * w * w)
        w *= 1 - CURVATURE * rate
    assert report.losses == pytest.approx(expected, rel=1e-10)
    # At 1 / CURVATURE a step goes right to the minimum; from 2 / CURVATURE on it grows, from nearly nothing.
    assert report.diverged > 2 / CURVATURE
    assert 1 / CURVATURE < report.lowest < report.diverged
    assert report.steepest < 1 / CURVATURE
    assert report.suggestion == min(report.steepest, report.lowest / 10)
    assert f"begin with {report.suggestion:.1e}" in report.summary()
    assert bool((model.w == 1).all())  # as found
    assert optimizer.param_groups[0]["lr"] == 0.123


def test_the_gpt_learns_at_the_suggested_rate():
    model = small_runs.model()
    optimizer = optim.AdamW(model.parameters())
    report = rate_range(model, optimizer, small_runs.data()[0], highest=10.0, steps=60)
    assert report.diverged is not None
    assert 1e-4 < report.suggestion < 0.1
    assert len(report.rates) == len(report.losses) == len(report.smoothed) < 60


def test_rates_that_are_all_too_low():
    model = Point()
    nothing = torch.zeros(1)
    report = rate_range(
        model, optim.SGD(model.parameters(), lr=1.0), [(nothing, nothing)], lowest=1e-30, highest=1e-29, steps=5,
        loss_fn=parabola,
    )  # fmt: skip
    assert report.suggestion is None
    assert report.diverged is None
    assert "fell at none of the rates from 1.0e-30 to 1.0e-29" in report.summary()


def test_rate_range_refuses():
    model = Point()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    batch = (torch.zeros(1), torch.zeros(1))
    for options, message in (
        ({"lowest": 0.0}, "lowest: expected a finite number > 0"),
        ({"lowest": 2.0, "highest": 1.0}, "highest: expected a finite number > 2"),
        ({"steps": 1}, "steps: expected an integer >= 2"),
    ):
        with pytest.raises(ValueError, match=f"rate_range: {message}"):
            rate_range(model, optimizer, [batch], loss_fn=parabola, **options)
    with pytest.raises(ValueError, match="rate_range: batches: expected at least one batch, got none"):
        rate_range(model, optimizer, [], loss_fn=parabola)
    with pytest.raises(ValueError, match="rate_range: loss: expected a finite number before the first update, got nan"):
        rate_range(model, optimizer, [batch], loss_fn=lambda w, _: parabola(w, _) * math.nan)
