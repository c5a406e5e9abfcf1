"""Losses and gradients that are infinite or NaN: the run ends, or leaves such updates out, and tells what it saw."""

from __future__ import annotations

import copy
import json
import math

import fusestep.optim
import pytest
import small_runs
import torch
from fusestep import Trainer
from fusestep.schedules import Constant
from fusestep.training import TrainingDiverged, read_metrics
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


def nan_gradient(logits, targets):
    return (logits * 0).sum().abs().sqrt()  # 0, with the derivative infinity times 0


@pytest.mark.parametrize(
    ("loss_fn", "skipped_by_the_optimizer"),
    [(lambda logits, targets: logits.sum() * math.inf, 0), (nan_gradient, 3)],
    ids=["loss", "gradient"],
)
def test_metrics_are_strict_json(tmp_path, loss_fn, skipped_by_the_optimizer):
    model = small_runs.model()
    optimizer = fusestep.optim.AdamW(model.parameters())
    trainer = Trainer(
        model,
        optimizer,
        Constant(1e-3),
        small_runs.config(3, run_dir=tmp_path, on_nonfinite="skip"),
        loss_fn=loss_fn,
    )
    before = small_runs.everything(trainer)
    trainer.fit(small_runs.data()[0])
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text()
    for metrics in read_metrics(tmp_path / "metrics.jsonl"):
        assert math.isnan(metrics.loss) == (not skipped_by_the_optimizer)
        assert metrics.grad_norm is None  # null, as JSON has no NaN
    assert optimizer.skipped_steps == skipped_by_the_optimizer
    assert {name: small_runs.everything(trainer)[name] for name in before if name != "rng"} == {
        name: value for name, value in before.items() if name != "rng"
    }


@pytest.mark.parametrize("library", [fusestep.optim, torch.optim])
def test_a_run_that_diverges_ends_and_keeps_its_checkpoint(tmp_path, library):
    calls = 0

    def loss(logits, targets):
        nonlocal calls
        calls += 1
        value = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return value * math.nan if calls > 6 else value

    model = small_runs.model()
    trainer = Trainer(
        model,
        library.AdamW(model.parameters()),
        Constant(1e-3),
        small_runs.config(100, run_dir=tmp_path, checkpoint_every=1),
        loss_fn=loss,
    )
    batches, _ = small_runs.data()
    starts = {}
    trainer.callbacks = [lambda metrics: starts.update({metrics.step: batches.indices.tolist()})]
    message = r"Trainer.fit: loss: expected a finite number, got nan at step 7\. '.*nonfinite.jsonl' has its batches"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.fit(batches)
    assert trainer.step == 7
    assert small_runs.last_checkpoint(tmp_path)["step"] == 6
    assert all(p.isfinite().all() for p in model.parameters())  # the update was not made
    (event,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert event["step"] == 7
    assert event["batches"] == [{"rank": 0, "loss": "nan", "indices": starts[7]}]
    assert event["gradients"]["sick"]["not finite"]
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[-1].loss)


class LossOfChosenUpdates:
    """Cross-entropy, but at the calls in ``bad``, counted from 1: infinite."""

    def __init__(self, bad):
        self.bad, self.calls = bad, 0

    def __call__(self, logits, targets):
        self.calls += 1
        value = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return value * math.inf if self.calls in self.bad else value


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_update_with_an_infinite_loss_is_skipped(tmp_path, accumulate):
    # Call by call the same batches: what is left out is the update whose loss, or a part of it, is infinite.
    bad = LossOfChosenUpdates({3 * accumulate})
    model = small_runs.model()
    moved = []
    trainer = Trainer(
        model,
        fusestep.optim.AdamW(model.parameters()),
        Constant(1e-2),
        small_runs.config(4, run_dir=tmp_path, checkpoint_every=3, on_nonfinite="skip", accumulate=accumulate),
        loss_fn=bad,
        callbacks=[lambda metrics: moved.append(copy.deepcopy(model.state_dict()))],
    )
    end = trainer.fit(small_runs.data()[0])
    assert end.step == 4
    for name, value in moved[1].items():
        assert torch.equal(moved[2][name], value)
    assert any(not torch.equal(moved[3][name], value) for name, value in moved[2].items())
    (event,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert event["step"] == 3
    assert [batch["loss"] == "inf" for batch in event["batches"]] == [False] * (accumulate - 1) + [True]
    assert all(len(batch["indices"]) == small_runs.BATCH for batch in event["batches"])
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-00000003", "step-00000004"}
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [math.isfinite(m.loss) for m in lines] == [True, True, False, True]
    assert lines[2].grad_norm is None


def test_skipping_has_an_end(tmp_path):
    model = small_runs.model()
    trainer = Trainer(
        model,
        fusestep.optim.SGD(model.parameters()),
        Constant(1e-2),
        small_runs.config(100, run_dir=tmp_path, on_nonfinite="skip"),
        loss_fn=LossOfChosenUpdates(range(7, 100)),
    )
    message = r"loss: expected a finite number, got (inf|nan) at step 16, the 10th update in a row"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.fit(small_runs.data()[0])
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 10
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_gradient_that_stays_nan_under_a_finite_loss_ends_the_run():
    model = small_runs.model()
    trainer = Trainer(
        model, fusestep.optim.SGD(model.parameters()), Constant(1e-2), small_runs.config(100), loss_fn=nan_gradient
    )
    message = r"Trainer.fit: gradient norm: expected a finite number, got nan at step 10, the 10th update in a row"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.fit(small_runs.data()[0])


def test_no_checkpoint_of_a_model_that_an_infinite_gradient_spoilt(tmp_path):
    model = small_runs.model()
    optimizer = fusestep.optim.SGD(model.parameters(), on_nonfinite="propagate")
    config = small_runs.config(3, run_dir=tmp_path, checkpoint_every=1, on_nonfinite="skip")
    Trainer(model, optimizer, Constant(1e-2), config, loss_fn=nan_gradient).fit(small_runs.data()[0])
    assert not (tmp_path / "checkpoints").exists()


def test_batches_without_indices_and_no_run_directory():
    model = small_runs.model()
    trainer = Trainer(
        model,
        fusestep.optim.SGD(model.parameters()),
        Constant(1e-2),
        small_runs.config(100),
        loss_fn=LossOfChosenUpdates({2}),
    )
    with pytest.raises(TrainingDiverged, match=r"got (inf|nan) at step 2\. Lower the rate"):
        trainer.fit(list(small_runs.data()[0]))
