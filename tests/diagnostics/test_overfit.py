"""Each of the culprits is provoked, and found; a sound model has none."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch
from fusestep import optim
from fusestep.diagnostics import culprits, overfit_one_batch
from fusestep.losses import cross_entropy
from fusestep.nn.init import init_weights_
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(16, 8), torch.randint(0, 4, (16,))


def network(width: int = 64, *, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 4)]
    if middle is not None:
        layers.insert(2, middle)
    model = nn.Sequential(*layers)
    init_weights_(model)
    return model


def blame(report) -> tuple[str | None, str]:
    """(who is guilty, by which measurement); everybody before has been ruled out."""
    assert not report.succeeded
    guilty = [culprit for culprit in report.culprits if culprit.guilty]
    assert len(guilty) <= 1
    assert report.culprit == (guilty[0] if guilty else None)
    return (guilty[0].name, guilty[0].measurement) if guilty else (None, report.summary())


# --- sound models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_sound_model_overfits(batch, optimizer):
    model = network().train()
    before = [p.detach().clone() for p in model.parameters()]
    rate = {"AdamW": 1e-2, "SGD": 0.3}[optimizer]
    report = overfit_one_batch(model, getattr(optim, optimizer)(model.parameters(), lr=rate), batch)
    assert report.succeeded
    assert report.losses[-1] <= report.target == pytest.approx(min(report.losses[0], math.log(4)) / 10)
    assert len(report.losses) < 200
    assert report.culprits == ()
    assert report.culprit is None
    assert "the model fits one batch" in report.summary()
    assert model.training
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_the_gpt_overfits():
    model = small_runs.model()
    batch = next(iter(small_runs.data()[0]))
    report = overfit_one_batch(model, optim.AdamW(model.parameters(), lr=1e-2), batch, target=0.3)
    assert report.succeeded


def test_sound_regression_soft_labels_and_batch_normalisation(batch):
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    init_weights_(model)
    statistics = model[1].running_mean.clone()
    adam = optim.AdamW(model.parameters(), lr=1e-2)
    goals = torch.randn(16, 4) * 50 + 100
    report = overfit_one_batch(
        model, optim.AdamW(model.parameters(), lr=1.0), (batch[0], goals), loss_fn=nn.functional.mse_loss
    )
    assert report.succeeded, report.summary()
    report = overfit_one_batch(model, adam, (batch[0], torch.eye(4)[batch[1]]))
    assert report.succeeded, report.summary()
    assert torch.equal(model[1].running_mean, statistics)


def test_a_loss_that_may_be_negative_is_no_culprit(batch):
    """Of a normal distribution, -log p is negative where it is sure and right."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
    goals = torch.randn(16)

    def loss(outputs, targets):
        return (outputs[:, 1] + 0.5 * (targets - outputs[:, 0]).square() * torch.exp(-2 * outputs[:, 1])).mean()

    report = overfit_one_batch(
        model, optim.AdamW(model.parameters(), lr=3e-3), (batch[0], goals), loss_fn=loss, target=-0.5, steps=500
    )
    assert report.succeeded, report.summary()


# --- the backward pass --------------------------------------------------------------------------------------


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


class WrongSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Wrong(nn.Module):
    def forward(self, x):
        return WrongSign.apply(x)


def test_a_backward_pass_that_does_not_arrive(batch):
    model = network(2, middle=Cut())
    name, measured = blame(overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), batch, steps=10))
    assert name == culprits.BACKWARD
    assert "no gradient reaches 0.weight, 0.bias, but the loss changes with it" in measured


def test_a_backward_pass_that_is_wrong(batch):
    model = network(4, middle=Wrong())
    name, measured = blame(overfit_one_batch(model, optim.AdamW(model.parameters(), lr=1e-3), batch))
    assert name == culprits.BACKWARD
    assert "backward() gives" in measured
    assert "wrong in 0.weight, 0.bias" in measured


def test_a_parameter_that_plays_no_part_is_no_wrong_backward_pass(batch):
    model = network()
    model.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    report = overfit_one_batch(model, optim.SGD(model.parameters(), lr=1e-6), batch, steps=100)
    assert blame(report)[0] == culprits.TOO_LOW
    backward = report.culprits[0]
    assert (backward.name, backward.guilty) == (culprits.BACKWARD, False)


# --- the loss -----------------------------------------------------------------------------------------------


def wrong_sign(logits, targets):
    return -cross_entropy(logits, targets)


def softmax_twice(logits, targets):
    return cross_entropy(logits.softmax(-1), targets)


def over_the_batch(logits, targets):
    return -logits.log_softmax(0).gather(1, targets[:, None]).mean()  # normalised over observations, not classes


def wrong_targets(logits, targets):
    return cross_entropy(logits, (targets + 1) % 4) + 1.0


def constant(logits, targets):
    return cross_entropy(logits.detach(), targets)


def constant_of_outputs(logits, targets):
    return (0.0 * logits).sum() + 3.0


LOSSES = {
    wrong_sign: "agree with 0% of the targets",
    softmax_twice: "which no model can reach",
    over_the_batch: "which no model can reach",
    wrong_targets: "which no model can reach",
    constant_of_outputs: "it does not depend on the outputs",
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_loss_that_is_wrong(batch, loss):
    model = network()
    report = overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), batch, loss_fn=loss)
    name, measured = blame(report)
    assert name == culprits.LOSS
    assert LOSSES[loss] in measured


def test_a_loss_whose_gradient_is_lost_is_a_backward_pass_that_does_not_arrive(batch):
    model = network()
    report = overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), batch, loss_fn=constant, steps=10)
    assert blame(report)[0] == culprits.BACKWARD


def test_a_regression_loss_with_the_wrong_sign(batch):
    model = network()
    goals = torch.randn(16, 4)
    report = overfit_one_batch(
        model, optim.SGD(model.parameters(), lr=1e-3), (batch[0], goals), loss_fn=lambda y, t: -(y - t).square().mean()
    )
    name, measured = blame(report)
    assert name == culprits.LOSS
    assert "agree with 0% of the targets" in measured


# --- rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e-6, 1e-4])
def test_a_rate_that_is_too_low(batch, lr):
    model = network()
    name, measured = blame(overfit_one_batch(model, optim.SGD(model.parameters(), lr=lr), batch))
    assert name == culprits.TOO_LOW
    assert f"at this rate, {lr:.3g}" in measured
    assert "times higher, it reached" in measured


@pytest.mark.parametrize(("optimizer", "lr"), [("SGD", 1e3), ("SGD", 1e5), ("AdamW", 1e3)])
def test_a_rate_that_is_too_high(batch, optimizer, lr):
    model = network()
    report = overfit_one_batch(model, getattr(optim, optimizer)(model.parameters(), lr=lr), batch, steps=50)
    name, measured = blame(report)
    assert name == culprits.TOO_HIGH, report.summary()
    assert "times lower, it reached" in measured
    assert report.culprits[0].guilty is False  # the backward pass is right
    assert [culprit.name for culprit in report.culprits][:2] == [culprits.BACKWARD, culprits.LOSS]


# --- initial values -----------------------------------------------------------------------------------------


def fill(model, value):
    for p in model.parameters():
        nn.init.constant_(p, value)
    return model


def explode(model):
    for p in model.parameters():
        nn.init.normal_(p, std=1e3)
    return model


@pytest.mark.parametrize(
    "spoil", [lambda m: fill(m, 0.0), lambda m: fill(m, 0.1), explode], ids=["zero", "alike", "huge"]
)
def test_bad_initial_values(batch, spoil):
    model = spoil(network())
    report = overfit_one_batch(model, optim.AdamW(model.parameters(), lr=1e-2), batch)
    name, measured = blame(report)
    assert name == culprits.INITIAL, report.summary()
    assert "initialised anew by activation" in measured


def test_a_gradient_that_vanishes_from_the_first_step_on():
    """Nothing helps a stack of 30 sigmoids, new initial values neither; the first gradient tells."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(30) for layer in (nn.Linear(8, 8), nn.Sigmoid())))
    batch = torch.randn(16, 8), torch.randint(0, 8, (16,))
    name, measured = blame(overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), batch, steps=20))
    assert name == culprits.INITIAL
    assert "the first gradient is vanishing in" in measured


# --- the model ----------------------------------------------------------------------------------------------


def test_a_model_that_is_too_simple():
    """No line tells the classes of an exclusive or apart."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    batch = inputs, torch.tensor([0, 1, 1, 0])
    report = overfit_one_batch(model, optim.AdamW(model.parameters(), lr=0.03), batch)
    name, measured = blame(report)
    assert name == culprits.TOO_SIMPLE
    assert "has settled at 0.693" in measured  # log 2: it cannot do better than a guess
    assert {c.name for c in report.culprits if c.guilty is False} == {
        culprits.BACKWARD, culprits.LOSS, culprits.INITIAL, culprits.TOO_HIGH, culprits.TOO_LOW,
    }  # fmt: skip
    wide = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    assert overfit_one_batch(wide, optim.AdamW(wide.parameters(), lr=0.03), batch).succeeded


def test_a_batch_that_contradicts_itself_is_named(batch):
    model = network()
    inputs = batch[0].sign()[:, :1].expand(-1, 8)  # one bit cannot tell four classes apart
    report = overfit_one_batch(model, optim.AdamW(model.parameters(), lr=1e-2), (inputs, batch[1]))
    name, measured = blame(report)
    assert name == culprits.TOO_SIMPLE
    assert "16 of 16 inputs are another one's equal with another target" in measured


def test_too_few_steps_are_no_culprit_s_guilt():
    """The descent is right and slow at any rate: nobody is guilty, and the summary says what to do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    batch = torch.randn(64, 8), torch.randint(0, 4, (64,))
    report = overfit_one_batch(model, optim.SGD(model.parameters(), lr=0.1), batch, steps=40)
    name, summary = blame(report)
    assert name is None
    assert "give it more steps" in summary


def test_outputs_that_are_no_tensor_leave_the_loss_unknown(batch):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return self.model(x), None

    model = Pair()
    report = overfit_one_batch(
        model,
        optim.SGD(model.parameters(), lr=1e-6),
        batch,
        loss_fn=lambda outputs, targets: cross_entropy(outputs[0], targets),
    )
    assert blame(report)[0] == culprits.TOO_LOW
    assert {c.name: c.guilty for c in report.culprits}[culprits.LOSS] is None


def test_overfit_refuses(batch):
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="overfit_one_batch: steps: expected an integer >= 1, got 0"):
        overfit_one_batch(model, optimizer, batch, steps=0)
    with pytest.raises(ValueError, match="overfit_one_batch: target: expected a finite number"):
        overfit_one_batch(model, optimizer, batch, target=math.nan)
