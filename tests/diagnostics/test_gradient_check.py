"""Gradient checking, on gradients that are right and on gradients with a known fault."""

from __future__ import annotations

import math

import numpy as np
import pytest
import small_runs
import torch
from fusestep.diagnostics import check_function, check_gradients, check_module
from fusestep.losses import cross_entropy
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


class WrongBackward(torch.autograd.Function):
    """y = x^2, whose derivative was believed to be x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def test_gradients_of_the_gpt_are_right():
    model = small_runs.model().double().eval()
    inputs, targets = next(iter(small_runs.data()[0]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    checks = check_gradients(
        lambda: cross_entropy(model(inputs), targets),
        model.named_parameters(),
        elements=4,
        generator=torch.Generator().manual_seed(0),
    )
    assert [check.name for check in checks] == list(before)
    assert all(check.passed for check in checks), max(checks, key=lambda check: check.error)
    assert any(abs(check.analytic) > 1e-3 for check in checks)
    for name, p in model.named_parameters():  # as found
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_a_wrong_gradient_is_found_where_it_is():
    torch.manual_seed(0)
    right, wrong = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    checks = check_gradients(
        lambda: (right.sin() + WrongBackward.apply(wrong)).sum(), [("right", right), ("wrong", wrong)]
    )
    assert [check.passed for check in checks] == [True, False]
    assert checks[1].numeric == pytest.approx(2 * checks[1].analytic, rel=1e-6)
    assert checks[1].analytic == wrong[checks[1].index].item()


def test_a_gradient_that_is_wrong_by_little_is_found():
    x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def loss():  # the value of x^3, with a gradient that is 1e-5 too large
        slope = 3 * x.detach() ** 2 * (1 + 1e-5)
        return (x.detach() ** 3 + slope * (x - x.detach())).sum()

    assert not check_gradients(loss, [("x", x)])[0].passed


def test_gradients_that_are_not_finite_or_not_there():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    unused = torch.zeros((), dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    checks = check_gradients(lambda: x.abs().sqrt().sum(), [("x", x), ("unused", unused), ("empty", empty)])
    assert [(check.name, check.passed) for check in checks] == [("x", False), ("unused", True)]
    assert checks[0].error == math.inf


def test_gradient_check_refuses():
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(TypeError, match=r"check_gradients: x: expected float64, got torch.float32. Use check_module"):
        check_gradients(lambda: x.sum(), [("x", x)])
    y = torch.ones(50, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"check_gradients: loss: expected the same value at each call"):
        check_gradients(lambda: nn.functional.dropout(y).sum(), [("y", y)])
    with pytest.raises(ValueError, match="check_gradients: elements"):
        check_gradients(lambda: y.sum(), [("y", y)], elements=0)


class Square(nn.Module):
    def forward(self, x):
        return WrongBackward.apply(x)


def test_a_float32_module_is_checked_on_a_copy_in_float64():
    torch.manual_seed(0)
    batch = torch.randn(5, 3), torch.randn(5, 2)
    right = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2))
    before = {name: p.detach().clone() for name, p in right.named_parameters()}
    report = check_module(right, batch, loss_fn=nn.functional.mse_loss)
    assert report.passed
    assert [check.name for check in report] == list(before)
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in right.named_parameters())
    assert right.training
    wrong = nn.Sequential(nn.Linear(3, 4), Square(), nn.Linear(4, 2))
    report = check_module(wrong, batch, loss_fn=nn.functional.mse_loss)
    assert [check.name for check in report if not check.passed] == ["0.weight", "0.bias"]
    # Half of the gradient is missing: the relative error of 1 against 2.
    assert report[0].relative_error == pytest.approx(0.5, abs=1e-6)
    table = report.summary().splitlines()
    assert table[1].startswith("0.")
    assert "WRONG at [" in table[1]
    assert table[-1].endswith("ok")


def test_an_embedding_is_checked_where_it_has_a_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5000, 3), Square(), nn.Linear(3, 5000))
    report = check_module(model, (torch.tensor([7, 4321]), torch.tensor([1, 2])), elements=2)
    assert not report[0].passed
    assert report[0].index[0] in (7, 4321)


def test_functions_of_numpy():
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(3, 2)), "x": rng.normal(size=3), "unused": rng.normal(size=(2, 0))}
    kept = {name: array.copy() for name, array in arrays.items()}

    def value(w, x, unused):
        return float(np.sum(np.tanh(x @ w)))

    def gradient(w, x, unused):
        slope = 1.0 - np.tanh(x @ w) ** 2
        return {"w": np.outer(x, slope), "x": w @ slope, "unused": unused}

    report = check_function(value, gradient, arrays, elements=6)
    assert report.passed
    assert [check.name for check in report] == ["w", "x"]
    report = check_function(value, lambda **a: {**gradient(**a), "x": np.zeros(3)}, arrays)
    assert [check.passed for check in report] == [True, False]
    assert report[1].relative_error == 1.0
    assert all(np.array_equal(arrays[name], kept[name]) for name in kept)


def test_functions_of_numpy_refuse():
    x = np.ones(2)
    with pytest.raises(TypeError, match="check_function: x: expected float64, got float32"):
        check_function(lambda x: x.sum(), lambda x: {"x": x}, {"x": x.astype(np.float32)})
    with pytest.raises(ValueError, match=r"check_function: gradient of x: expected shape \(2,\), got \(3,\)"):
        check_function(lambda x: x.sum(), lambda x: {"x": np.ones(3)}, {"x": x})
    with pytest.raises(ValueError, match="check_function: gradient: expected names of x, got 'y'"):
        check_function(lambda x: x.sum(), lambda x: {"y": x}, {"x": x})
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="check_function: function: expected the same value at each call"):
        check_function(lambda x: rng.normal(), lambda x: {"x": x}, {"x": x})
