"""What dashboards and health.jsonl hold of a run: read back, after resuming, after an error."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
import types
from importlib.util import find_spec

import pytest
import small_runs
import torch
from fusestep import Trainer
from fusestep.diagnostics import dead_units, gradient_health, layer_variances
from fusestep.optim import AdamW
from fusestep.schedules import WarmupCosine
from fusestep.training import StepMetrics, TrainingDiverged, read_metrics
from fusestep.training.callbacks import DiagnosticCallback, HealthCallback, TensorBoardCallback, WandbCallback
from small_runs import one_thread  # noqa: F401  # for every test of this file

NAMES = {
    "train/loss": "loss",
    "train/learning_rate": "lr",
    "train/grad_norm": "grad_norm",
    "eval/loss": "val_loss",
}


def fit(run_dir, callbacks, steps=10, *, model=None, resume=False, loss_fn=None, optimizer_class=AdamW):
    model = small_runs.model() if model is None else model
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    options = {} if loss_fn is None else {"loss_fn": loss_fn}
    config = small_runs.config(steps, run_dir=run_dir, max_grad_norm=0.5)
    trainer = Trainer(model, optimizer, WarmupCosine(1e-2, 3, 20), config, callbacks=callbacks, **options)
    trainer.fit(*small_runs.data(), resume_from=run_dir / "checkpoints" if resume else None)


def float32(values):
    return torch.tensor(values, dtype=torch.float32).tolist()


@pytest.fixture
def events():
    """{name: [(step, value)]} of a directory of event files, as TensorBoard shows it."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    def read(path):
        accumulator = EventAccumulator(str(path), size_guidance={SCALARS: 0})
        accumulator.Reload()
        return {
            name: [(event.step, event.value) for event in accumulator.Scalars(name)]
            for name in accumulator.Tags()["scalars"]
        }

    return read


def assert_shows(shown, run_dir):
    """That what was shown is what metrics.jsonl holds, as float32."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    for name, field in NAMES.items():
        held = [(row.step, getattr(row, field)) for row in rows if getattr(row, field) is not None]
        assert [step for step, _ in shown[name]] == [step for step, _ in held], name
        assert [value for _, value in shown[name]] == float32([value for _, value in held]), name


def test_tensorboard_shows_the_metrics(tmp_path, events):
    fit(tmp_path / "run", [TensorBoardCallback(tmp_path / "events")])
    shown = events(tmp_path / "events")
    assert shown.keys() == {*NAMES, "train/tokens_per_second"}
    assert_shows(shown, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    speeds = [(b.tokens - a.tokens) / (b.seconds - a.seconds) for a, b in itertools.pairwise(rows)]
    assert [value for _, value in shown["train/tokens_per_second"]] == float32(speeds)


def test_tensorboard_goes_on_where_a_run_is_resumed(tmp_path, events):
    def dies(metrics):
        if metrics.step == 8:
            raise ZeroDivisionError

    callbacks = [TensorBoardCallback(tmp_path / "events"), dies]
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "run", callbacks)
    # Nothing is lost, though the error came in the midst of an update.
    assert [step for step, _ in events(tmp_path / "events")["train/loss"]] == list(range(1, 9))
    # From the checkpoint of step 5: the steps 6 to 8 are made again, and shown once.
    fit(tmp_path / "run", callbacks[:1], 12, resume=True)
    shown = events(tmp_path / "events")
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 13))
    assert_shows(shown, tmp_path / "run")


def test_tensorboard_shows_a_loss_that_is_not_finite(tmp_path, events):
    with pytest.raises(TrainingDiverged):
        fit(None, [TensorBoardCallback(tmp_path)], 20, loss_fn=lambda logits, _: logits.sum() * math.nan)
    assert all(math.isnan(value) for _, value in events(tmp_path)["train/loss"])


@pytest.mark.parametrize(
    ("missing", "callback", "extra"),
    [("tensorboard", TensorBoardCallback, "tensorboard"), ("wandb", WandbCallback, "wandb")],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, missing, callback, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=rf"{callback.__name__} needs {missing}: .*pip install 'fusestep\[{extra}\]'"):
        callback(tmp_path)


@pytest.fixture
def fake_wandb(monkeypatch):
    """Remembers what it is called with."""
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append(("log", values, step)),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_is_told_each_update(tmp_path, fake_wandb):
    callback = WandbCallback("texts", name="first", config={"lr": 1})
    assert not fake_wandb
    fit(tmp_path, [callback], 4)
    assert fake_wandb[0] == ("init", {"project": "texts", "name": "first", "config": {"lr": 1}})
    assert fake_wandb[-1] == ("finish", 0)
    logged = fake_wandb[1:-1]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for _, _, step in logged] == [1, 2, 3, 4]
    for (_, values, _), row in zip(logged, rows, strict=True):
        held = {name: getattr(row, field) for name, field in NAMES.items() if getattr(row, field) is not None}
        assert {name: value for name, value in values.items() if name in NAMES} == held
    assert [("train/tokens_per_second" in values) for _, values, _ in logged] == [False, True, True, True]


def test_wandb_hears_of_an_error(fake_wandb):
    with pytest.raises(TrainingDiverged):
        fit(None, [WandbCallback("texts")], 20, loss_fn=lambda logits, _: logits.sum() * math.nan)
    assert fake_wandb[-1] == ("finish", 1)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install '.[wandb]'")
def test_wandb_itself(tmp_path):
    program = """
import sys
from fusestep.training import StepMetrics
from fusestep.training.callbacks import WandbCallback
with WandbCallback("texts", mode="offline", dir=sys.argv[1]) as callback:
    for step in (1, 2):
        callback(StepMetrics(step, 2.0 / step, None, 1e-3, 0.5, 10 * step, 1.0 * step))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"summary:.*train/loss\s+1\n", done.stderr, re.DOTALL)
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def health(run_dir):
    return [json.loads(line) for line in (run_dir / "health.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("library", ["fusestep", "torch"])
def test_health_is_that_of_the_gradients_of_the_update(tmp_path, library):
    optimizer_class = AdamW if library == "fusestep" else torch.optim.AdamW
    model, seen = small_runs.model(), {}

    def look(metrics):
        seen[metrics.step] = gradient_health(model), metrics.grad_norm

    callbacks = [look, HealthCallback(model, tmp_path, every=4)]
    fit(tmp_path, callbacks, model=model, optimizer_class=optimizer_class)
    lines = health(tmp_path)
    assert [line["step"] for line in lines] == [1, 4, 8]
    for line in lines:
        report, grad_norm = seen[line["step"]]
        assert line["layers"] == {
            layer.name: {
                "grad_norm": layer.grad_norm,
                "grad_max": layer.grad_max,
                "param_norm": layer.param_norm,
                "flag": layer.flag,
            }
            for layer in report
        }
        # fusestep's clipping leaves the gradients as they were, torch's has scaled them.
        whole = math.hypot(*(layer["grad_norm"] for layer in line["layers"].values()))
        expected = grad_norm if library == "fusestep" else min(0.5, grad_norm)
        assert whole == pytest.approx(expected, rel=1e-5)


def test_health_has_null_for_what_is_not_finite(tmp_path):
    model = small_runs.model()
    callback = HealthCallback(model, tmp_path, exploding=1e-9)
    with callback:
        model.norm.weight.grad = torch.full_like(model.norm.weight, math.inf)
        model.tokens.weight.grad = torch.ones_like(model.tokens.weight)
        callback(StepMetrics(1, 1.0, None, 1e-3, math.inf, 10, 1.0))
    (line,) = health(tmp_path)
    assert line["layers"]["norm"]["grad_norm"] is None
    assert line["layers"]["norm"]["flag"] == "not finite"
    assert line["layers"]["tokens"]["flag"] == "exploding"
    assert line["layers"]["blocks.0.norm1"]["flag"] == "no gradient"


def test_health_of_a_run_that_is_resumed(tmp_path):
    def dies(metrics):
        if metrics.step == 8:
            raise ZeroDivisionError

    model = small_runs.model()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, [HealthCallback(model, tmp_path, every=2), dies], model=model)
    assert [line["step"] for line in health(tmp_path)] == [1, 2, 4, 6, 8]
    model = small_runs.model()
    fit(tmp_path, [HealthCallback(model, tmp_path, every=3)], 12, model=model, resume=True)  # from step 5
    assert [line["step"] for line in health(tmp_path)] == [1, 2, 4, 6, 9, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "HealthCallback: every: expected an integer >= 1, got 0"),
        ({"vanishing": -1.0}, "HealthCallback: vanishing: expected a finite number >= 0"),
        ({"exploding": math.nan}, "HealthCallback: exploding: expected a finite number >= 0"),
    ],
)
def test_settings_of_health_that_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        HealthCallback(small_runs.model(), tmp_path, **options)


def test_a_callback_is_left_in_any_case():
    class Noted:
        def __init__(self):
            self.log = []

        def __enter__(self):
            self.log.append("entered")

        def __call__(self, metrics):
            self.log.append(metrics.step)

        def __exit__(self, kind, error, trace):
            self.log.append(kind)

    noted = Noted()
    fit(None, [noted, lambda _: None], 2)

    def fails(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(None, [noted, fails], 2)
    assert noted.log == ["entered", 1, 2, None, "entered", 1, ZeroDivisionError]


def test_diagnostics_go_along_with_a_run_and_leave_no_trace(tmp_path):
    batch = next(iter(small_runs.data(seed=7)[0]))

    def run(path, callbacks_of):
        model = small_runs.model()
        torch.manual_seed(3)  # of the dropout
        fit(path, callbacks_of(model, path), 6, model=model)
        return {name: value.clone() for name, value in model.state_dict().items()}

    watched = run(
        tmp_path / "watched",
        lambda model, path: [
            DiagnosticCallback(lambda: dead_units(model, batch[0]), path, every=3),
            DiagnosticCallback(lambda: layer_variances(model, batch), path, every=4, name="variances"),
        ],
    )
    alone = run(tmp_path / "alone", lambda model, path: [])
    for name, value in alone.items():
        assert torch.equal(watched[name], value)
    folder = tmp_path / "watched" / "diagnostics"
    names = ["DeadUnitsReport-00000003", "DeadUnitsReport-00000006", "variances-00000004"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}.{kind}" for n in names for kind in ("json", "png")]
    assert json.loads((folder / f"{names[0]}.json").read_text())["rows"]
    assert (folder / f"{names[2]}.png").read_bytes().startswith(b"\x89PNG")


def test_a_diagnostic_that_is_never_due():
    with pytest.raises(ValueError, match=r"DiagnosticCallback: every: expected an integer >= 1, got 0"):
        DiagnosticCallback(lambda: None, "run", every=0)
