"""Diagnostics on models that are right, and on models with a known fault."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch
from fusestep import optim
from fusestep.diagnostics import check_gradients, gradient_health, overfit_one_batch
from fusestep.losses import cross_entropy
from fusestep.nn.init import init_weights_
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


# --- gradient checking --------------------------------------------------------------------------------------


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
    with pytest.raises(TypeError, match=r"check_gradients: x: expected float64, got torch.float32. Use model"):
        check_gradients(lambda: x.sum(), [("x", x)])
    y = torch.ones(50, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"check_gradients: loss: expected the same value at each call"):
        check_gradients(lambda: nn.functional.dropout(y).sum(), [("y", y)])
    with pytest.raises(ValueError, match="check_gradients: elements"):
        check_gradients(lambda: y.sum(), [("y", y)], elements=0)


# --- gradient health ----------------------------------------------------------------------------------------


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


# --- overfitting one batch ----------------------------------------------------------------------------------


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(16, 8), torch.randint(0, 4, (16,))


def network(width: int = 64) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 4))
    init_weights_(model)
    return model


def test_a_sound_model_overfits(batch):
    model = network().train()
    report = overfit_one_batch(model, optim.AdamW(model.parameters(), lr=1e-2), batch)
    assert report.succeeded
    assert report.losses[-1] <= report.target == report.losses[0] / 10
    assert len(report.losses) < 200
    assert report.culprits == []
    assert model.training


def test_the_gpt_overfits():
    model = small_runs.model()
    inputs, targets = next(iter(small_runs.data()[0]))
    report = overfit_one_batch(model, optim.AdamW(model.parameters(), lr=1e-2), (inputs, targets), target=0.3)
    assert report.succeeded


def first_culprit(report) -> tuple[str, str | None]:
    assert not report.succeeded
    assert {culprit.name for culprit in report.culprits} == {
        "the model is too simple",
        "the loss function is wrong",
        "the backward pass is wrong",
        "a hyperparameter has an inappropriate value",
        "the parameters begin at bad values",
    }
    return report.culprits[0].name, report.culprits[0].evidence


def test_a_rate_that_is_too_low(batch):
    model = network()
    name, evidence = first_culprit(overfit_one_batch(model, optim.SGD(model.parameters(), lr=1e-6), batch))
    assert name == "a hyperparameter has an inappropriate value"
    assert "too low" in evidence


def test_a_rate_that_is_too_high(batch):
    model = network()
    name, evidence = first_culprit(overfit_one_batch(model, optim.SGD(model.parameters(), lr=1e3), batch, steps=20))
    assert name == "a hyperparameter has an inappropriate value"
    assert "too high" in evidence


def test_a_backward_pass_that_does_not_arrive(batch):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 64), nn.Linear(64, 4)

        def forward(self, x):
            return self.last(self.first(x).detach()) * 0.01

    model = Cut()
    name, evidence = first_culprit(overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), batch, steps=10))
    assert name == "the backward pass is wrong"
    assert "no gradient reaches first" in evidence


def test_a_model_that_is_too_simple(batch):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    inputs = batch[0].round().clamp(0, 1)[:, :1].expand(-1, 8)  # one bit cannot tell four classes apart
    name, evidence = first_culprit(
        overfit_one_batch(model, optim.AdamW(model.parameters(), lr=0.1), (inputs, batch[1]))
    )
    assert name == "the model is too simple"
    assert "settled" in evidence


def test_bad_initial_values():
    torch.manual_seed(0)
    model = deep(30, 0.3)
    targets = torch.randint(0, 8, (16,))
    report = overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), (torch.randn(16, 8), targets), steps=20)
    culprits = {culprit.name: culprit.evidence for culprit in report.culprits}
    assert "0.0" in culprits["the parameters begin at bad values"]


def test_a_loss_that_is_wrong(batch):
    model = network()
    report = overfit_one_batch(
        model,
        optim.SGD(model.parameters(), lr=0.1),
        batch,
        target=0.0,
        steps=5,
        loss_fn=lambda logits, targets: 1e9 - cross_entropy(logits, targets),  # the sign
    )
    assert not report.succeeded


# --- losses and initialisation ------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    hard = cross_entropy(logits, torch.tensor([1, 0]))
    # Two logarithms and a mean: a few roundings.
    assert float(hard) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-15)
    soft = cross_entropy(logits, torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64))
    expected = (0.25 * math.log(4) + 0.75 * math.log(4 / 3) + math.log(2)) / 2
    assert float(soft) == pytest.approx(expected, rel=1e-15)
    one_hot = nn.functional.one_hot(torch.tensor([1, 0]), 2).double()
    assert float(cross_entropy(logits, one_hot)) == pytest.approx(float(hard), rel=1e-15)


def test_cross_entropy_with_leading_dimensions():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 5, dtype=torch.float64), torch.randint(0, 5, (2, 3))
    flat = cross_entropy(logits.reshape(6, 5), targets.reshape(6))
    assert torch.equal(cross_entropy(logits, targets), flat)


def test_cross_entropy_refuses():
    logits = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"cross_entropy: targets: expected hard labels of shape \(2, 3\), got \(6,\)"):
        cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected soft labels of shape \(2, 3, 5\), got \(2, 3\)"):
        cross_entropy(logits, torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"expected int64 hard labels or floating soft labels, got torch.int32"):
        cross_entropy(logits, torch.zeros(2, 3, dtype=torch.int32))


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
