"""Real training of a small GPT through the trainer."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from itertools import pairwise

import fusestep.optim
import pytest
import small_runs
import torch
from fusestep import TrainConfig, Trainer
from fusestep.cli import main
from fusestep.schedules import Constant, WarmupCosine
from fusestep.training import CheckpointError, StepMetrics, plot_curves, read_metrics
from fusestep.training.interrupt import DeferredInterrupt
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn

OPTIMIZERS = {
    "AdamW": {"weight_decay": 0.1},
    "Adam": {"weight_decay": 0.01},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {"lr_decay": 0.1},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def losses_of_ten_steps(optimizer_class, options, dtype, disturbed_by=None) -> list[float]:
    """The losses of ten steps and of an evaluation after them; ``disturbed_by`` seeds other roundings."""
    model = small_runs.model().to(dtype)
    optimizer = optimizer_class(model.parameters(), **options)
    if disturbed_by is not None:
        disturb_roundings(optimizer, torch.Generator().manual_seed(disturbed_by))
    history = []
    schedule = WarmupCosine(1e-2, 3, 10, initial_lr=1e-3)
    trainer = Trainer(model, optimizer, schedule, small_runs.config(10), callbacks=[history.append])
    train, val = small_runs.data()
    torch.manual_seed(1)  # dropout
    trainer.fit(train, val)
    return [m.loss for m in history] + [history[-1].val_loss]


def disturb_roundings(optimizer, generator) -> None:
    """After each update moves every parameter p by as much as another order of the same roundings could: two
    roundings of p itself (decay, final sum) in either program, and a dozen of the update (centered RMSprop has
    the longest chain), each at most u = eps/2 relative.
    """
    before = {}

    def pre(*_):
        before.update({p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]})

    @torch.no_grad()
    def post(*_):
        for p, old in before.items():
            u = torch.finfo(p.dtype).eps / 2
            signs = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
            p += (signs * u * (4 * p.abs() + 24 * (p - old).abs())).to(p.dtype)

    optimizer.register_step_pre_hook(pre)
    optimizer.register_step_post_hook(post)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_as_with_torch(name, dtype):
    # How far losses may part is a property of the run, not of the optimizer: it is measured on torch's own, by
    # disturbing its roundings. Twice that is allowed, as in every comparison with a naive result.
    torchs, options = getattr(torch.optim, name), OPTIMIZERS[name]
    expected = losses_of_ten_steps(torchs, options, dtype)
    disturbed = [losses_of_ten_steps(torchs, options, dtype, seed) for seed in range(3)]
    allowed = 2 * max(abs(a - b) for run in disturbed for a, b in zip(run, expected, strict=True))
    assert 0.0 < allowed < 1000 * torch.finfo(dtype).eps * expected[0]  # the run itself is well conditioned
    ours = losses_of_ten_steps(getattr(fusestep.optim, name), options, dtype)
    assert max(abs(a - b) for a, b in zip(ours, expected, strict=True)) <= allowed
    assert ours[-1] < ours[0]  # it does learn


def make_trainer(optimizer_class, max_steps, *, seed=0, run_dir=None, history=None, **settings):
    model = small_runs.model(seed)
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    schedule = WarmupCosine(1e-2, 3, 20, initial_lr=1e-3)
    config = small_runs.config(max_steps, run_dir=run_dir, max_grad_norm=1.0, clip_start=3, **settings)
    return Trainer(model, optimizer, schedule, config, callbacks=[] if history is None else [history.append])


@pytest.mark.parametrize("stop", [1, 7, 8, 13])
@pytest.mark.parametrize("library", ["fusestep", "torch"])
def test_resume_is_the_straight_run_bit_for_bit(tmp_path, library, stop):
    optimizer_class = {"fusestep": fusestep.optim, "torch": torch.optim}[library].AdamW
    straight_history, history = [], []
    straight = make_trainer(optimizer_class, 20, history=straight_history, accumulate=2)
    torch.manual_seed(5)
    straight.fit(*small_runs.data())

    first = make_trainer(optimizer_class, stop, run_dir=tmp_path, history=history, accumulate=2)
    torch.manual_seed(5)
    first.fit(*small_runs.data())
    torch.manual_seed(77)  # whatever happened in between
    second = make_trainer(optimizer_class, 20, seed=9, run_dir=tmp_path, history=history, accumulate=2)
    second.fit(*small_runs.data(seed=9), resume_from=tmp_path / "checkpoints")

    assert small_runs.everything(second) == small_runs.everything(straight)
    # The first session evaluated at its own end, too; the clock is not part of the run.
    clean = [replace(m, seconds=0.0, val_loss=m.val_loss if m.step % 4 == 0 else None) for m in history]
    assert clean == [replace(m, seconds=0.0) for m in straight_history]
    assert [m.step for m in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 21))
    assert second.seconds >= first.seconds


def test_steps_behind_the_checkpoint_are_made_again(tmp_path):
    trainer = make_trainer(fusestep.optim.AdamW, 5, run_dir=tmp_path)
    trainer.fit(*small_runs.data())
    metrics = tmp_path / "metrics.jsonl"
    line = json.loads(metrics.read_text().splitlines()[-1])
    with metrics.open("a") as file:  # a run that died two steps and a half after its checkpoint
        file.write("".join(json.dumps({**line, "step": step, "loss": -1.0}) + "\n" for step in (6, 7)))
        file.write('{"step": 8, "los')
    make_trainer(fusestep.optim.AdamW, 9, run_dir=tmp_path).fit(
        *small_runs.data(), resume_from=tmp_path / "checkpoints"
    )
    steps = read_metrics(metrics)
    assert [m.step for m in steps] == list(range(1, 10))
    assert all(m.loss > 0.0 for m in steps)


def test_nothing_left_to_do(tmp_path):
    make_trainer(fusestep.optim.AdamW, 3, run_dir=tmp_path).fit(*small_runs.data())
    again = make_trainer(fusestep.optim.AdamW, 3, run_dir=tmp_path)
    assert again.fit(*small_runs.data(), resume_from=tmp_path / "checkpoints") is None
    assert again.step == 3


def test_accumulation_is_the_big_batch():
    # The same twelve sequences, in one batch or in three; without dropout the gradient is the same but for the
    # order of its sums. What such an order is worth is measured by permuting the batch, and twice that allowed.
    shape = replace(small_runs.SHAPE, dropout=0.0)
    start = small_runs.model(0, shape).double()
    inputs, targets = next(iter(small_runs.data(batch_size=12)[0]))

    def gradient(batches, accumulate):
        model = small_runs.model(0, shape).double()
        optimizer = fusestep.optim.SGD(model.parameters(), lr=1.0)
        config = small_runs.config(1, accumulate=accumulate)
        metrics = Trainer(model, optimizer, Constant(1.0), config).fit(batches)
        moved = [a.detach() - b.detach() for a, b in zip(start.parameters(), model.parameters(), strict=True)]
        return torch.cat([change.flatten() for change in moved]), metrics

    whole, metrics = gradient([(inputs, targets)], 1)
    noise = 0.0
    for seed in range(5):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        noise = max(noise, float((gradient([(inputs[order], targets[order])], 1)[0] - whole).abs().max()))
    assert 0.0 < noise < 1e-15
    parts, metrics_of_parts = gradient(list(zip(inputs.split(4), targets.split(4), strict=True)), 3)
    assert float((parts - whole).abs().max()) <= 2 * noise
    # Three thirds of three means, against one mean of 192 logarithms: a rounding each.
    assert metrics_of_parts.loss == pytest.approx(metrics.loss, rel=200 * 2.0**-53)
    assert metrics_of_parts.tokens == metrics.tokens == 12 * small_runs.CONTEXT


@pytest.mark.parametrize("where", ["config", "optimizer", "torch"])
def test_clipping_begins_where_it_is_told(where):
    ceiling, start, lr = 0.5, 3, 0.1
    model = small_runs.model().double()
    if where == "torch":
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    else:
        own = {"max_grad_norm": ceiling} if where == "optimizer" else {}
        optimizer = fusestep.optim.SGD(model.parameters(), lr=lr, **own)
    config = small_runs.config(6, max_grad_norm=None if where == "optimizer" else ceiling, clip_start=start)
    positions = [torch.cat([p.detach().flatten() for p in model.parameters()])]
    norms = []

    def record(metrics: StepMetrics) -> None:
        positions.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        norms.append(metrics.grad_norm)

    Trainer(model, optimizer, Constant(lr), config, callbacks=[record]).fit(small_runs.data()[0])
    assert getattr(optimizer, "max_grad_norm", None) == (ceiling if where == "optimizer" else None)  # as it was
    count = len(positions[0])
    for step, norm in enumerate(norms):
        assert norm > ceiling  # else nothing would be tested
        coefficient = ceiling / (norm + 1e-6) if step >= start else 1.0
        moved = float((positions[step + 1] - positions[step]).norm())
        # Each element of the difference carries the rounding of the parameter, at most u |p|, and some of its own;
        # the norms are sums of `count` squares.
        u = 2.0**-53
        allowed = u * float(positions[step].norm()) + (8 + count) * u * lr * norm
        assert moved == pytest.approx(lr * norm * coefficient, rel=0.0, abs=allowed)


def test_clipping_by_value_may_begin_later_too():
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = fusestep.optim.SGD(model.parameters(), lr=1.0, max_grad_value=0.25)
    weights = [float(model.weight.detach())]
    batches = [(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))]
    trainer = Trainer(
        model,
        optimizer,
        Constant(1.0),
        small_runs.config(3, clip_start=2),
        loss_fn=lambda outputs, _: outputs.sum(),  # the gradient is 1
        callbacks=[lambda _: weights.append(float(model.weight.detach()))],
    )
    trainer.fit(batches)
    assert [a - b for a, b in pairwise(weights)] == pytest.approx([1.0, 1.0, 0.25], abs=1e-15)


def test_metrics(tmp_path):
    history = []
    trainer = make_trainer(fusestep.optim.AdamW, 10, run_dir=tmp_path / "deep" / "run", history=history, accumulate=2)
    train, val = small_runs.data()
    last = trainer.fit(train, val)
    lines = [json.loads(line) for line in (tmp_path / "deep" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    for step, line in enumerate(lines, 1):
        assert list(line) == ["step", "loss", "val_loss", "lr", "grad_norm", "tokens", "seconds"]
        assert line["step"] == step
        assert line["lr"] == trainer.schedule(step - 1)
        assert line["tokens"] == step * 2 * small_runs.BATCH * small_runs.CONTEXT
        assert line["grad_norm"] > 0.0
        assert (line["val_loss"] is not None) == (step in (4, 8, 10))  # every fourth and the last
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert (
        [StepMetrics(**line) for line in lines] == history == read_metrics(tmp_path / "deep" / "run" / "metrics.jsonl")
    )
    assert last == history[-1]
    # A network that knows nothing has ln(256) = 5.5 nats a byte.
    assert 4.0 < lines[0]["loss"] < 8.0
    assert (tmp_path / "deep" / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_evaluation_weighs_tokens_and_leaves_no_trace():
    model = small_runs.model().double()
    trainer = Trainer(model, fusestep.optim.SGD(model.parameters()), Constant(1.0), small_runs.config(1))
    _, val = small_runs.data()
    batches = list(val)
    assert {len(inputs) for inputs, _ in batches} == {1, 2}  # so that weights matter
    model.train()
    rng = torch.get_rng_state()
    loss = trainer.evaluate(val)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = model(torch.cat([inputs for inputs, _ in batches]))
        expected = nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.cat([targets for _, targets in batches]).flatten()
        )
    # Means of at most 48 terms of the same sign, taken in two orders.
    assert loss == pytest.approx(float(expected), rel=2 * 48 * 2.0**-53)


def test_evaluation_of_the_first_batches():
    model = small_runs.model()
    taken = []

    def batches():
        for batch in small_runs.data()[1]:
            taken.append(batch)
            yield batch

    trainer = Trainer(
        model, fusestep.optim.SGD(model.parameters()), Constant(1.0), small_runs.config(1, eval_batches=1)
    )
    first = trainer.evaluate(batches())
    trainer.config = small_runs.config(1)
    assert first == trainer.evaluate([taken[0]])
    with pytest.raises(ValueError, match=r"Trainer.evaluate: batches: expected at least one batch, got none"):
        trainer.evaluate([])


def test_no_training_batches():
    trainer = make_trainer(fusestep.optim.AdamW, 3)
    with pytest.raises(ValueError, match=r"Trainer.fit: train_batches: expected at least one batch an epoch, got none"):
        trainer.fit([])


def test_any_module_loss_and_batches():
    # Soft labels, a list of batches, no run directory, torch's own optimizer.
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    batches = [(torch.randn(8, 3), torch.softmax(torch.randn(8, 4), -1)) for _ in range(2)]
    history = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, Constant(0.5), small_runs.config(40), callbacks=[history.append]).fit(batches)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert history[-2].loss + history[-1].loss < history[0].loss + history[1].loss


def test_batches_that_cannot_be_resumed_are_refused(tmp_path):
    batch = next(iter(small_runs.data()[0]))
    make_trainer(fusestep.optim.AdamW, 2, run_dir=tmp_path).fit([batch])
    again = make_trainer(fusestep.optim.AdamW, 4, run_dir=tmp_path)
    with pytest.raises(TypeError, match=r"Trainer.fit: train_batches: expected batches with state_dict .*, got list"):
        again.fit([batch], resume_from=tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"data: expected the position in the training batches"):
        again.fit(*small_runs.data(), resume_from=tmp_path / "checkpoints")


def test_an_existing_run_is_refused_or_overwritten(tmp_path):
    make_trainer(fusestep.optim.AdamW, 6, run_dir=tmp_path, checkpoint_every=3).fit(*small_runs.data())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"run directory: '.*': expected a new or empty one, got .*--overwrite"):
        make_trainer(fusestep.optim.AdamW, 2, run_dir=tmp_path).fit(*small_runs.data())
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    make_trainer(fusestep.optim.AdamW, 2, run_dir=tmp_path, overwrite=True).fit(*small_runs.data())
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_steps": 0}, ValueError),
        ({"max_steps": 1.5}, TypeError),
        ({"accumulate": 0}, ValueError),
        ({"eval_every": 0}, ValueError),
        ({"eval_batches": 0}, ValueError),
        ({"checkpoint_every": -1}, ValueError),
        ({"keep_last": 0}, ValueError),
        ({"clip_start": -1}, ValueError),
        ({"max_grad_norm": 0.0}, ValueError),
        ({"max_grad_norm": math.nan}, ValueError),
        ({"max_grad_norm": "big"}, TypeError),
        ({"baseline_loss": math.inf}, ValueError),
    ],
)
def test_wrong_settings_are_refused(settings, error):
    with pytest.raises(error, match=rf"^TrainConfig: {next(iter(settings))}: expected .*, got "):
        TrainConfig(**{"max_steps": 1, **settings})


def test_progress_bar(capsys):
    make_trainer(fusestep.optim.AdamW, 4, progress=True).fit(*small_runs.data())
    captured = capsys.readouterr()
    assert captured.out == ""  # a library does not print
    for part in ("4/4", "loss ", "val ", "rate ", "norm ", "tokens/s"):
        assert part in captured.err


def test_progress_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm, or progress=False"):
        make_trainer(fusestep.optim.AdamW, 1, progress=True).fit(*small_runs.data())


def test_curves_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r"curves.png was not written: .*pip install matplotlib"):
        make_trainer(fusestep.optim.AdamW, 1, run_dir=tmp_path).fit(*small_runs.data())
    assert small_runs.last_checkpoint(tmp_path)["step"] == 1


def test_curves_of_unusual_runs(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("")
    plot_curves(metrics, tmp_path / "none.png")
    line = {
        "step": 1,
        "loss": None,
        "val_loss": None,
        "lr": 0.1,
        "grad_norm": None,
        "tokens": 1,
        "seconds": 1.0,
    }
    metrics.write_text(json.dumps(line) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(metrics, tmp_path / "one.png", baseline_loss=3.0)
    assert (tmp_path / "one.png").stat().st_size > 1000


# --- Ctrl-C -------------------------------------------------------------------------------------------------


@pytest.fixture
def heeds_interrupts():
    """As Python starts in a terminal: a shell's background job ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_ends_after_the_update_in_progress(tmp_path):
    def interrupt(metrics: StepMetrics) -> None:
        if metrics.step == 3:
            signal.raise_signal(signal.SIGINT)

    trainer = make_trainer(fusestep.optim.AdamW, 20, run_dir=tmp_path)
    trainer.callbacks = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(*small_runs.data())
    assert trainer.step == 3
    assert small_runs.last_checkpoint(tmp_path)["step"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_second_ctrl_c_does_not_wait():
    with DeferredInterrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with DeferredInterrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
        assert not interrupt.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_another_thread():
    done = []
    thread = threading.Thread(target=lambda: done.append(make_trainer(fusestep.optim.AdamW, 2).fit(*small_runs.data())))
    thread.start()
    thread.join()
    assert done[0].step == 2


def test_ctrl_c_in_a_terminal_leaves_a_usable_checkpoint(tmp_path):
    run_dir, straight = tmp_path / "run", tmp_path / "straight"
    small = ["--steps", "40", "--batch-size", "2", "--context", "16", "--eval-every", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusestep", "train", "--run-dir", str(run_dir), *small],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background job ignores SIGINT, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"to go on: fusestep train --run-dir {run_dir} --resume" in out
    assert "Traceback" not in err
    stopped = small_runs.last_checkpoint(run_dir)["step"]
    assert 5 <= stopped < 40
    assert len(read_metrics(metrics)) == stopped

    assert main(["train", "--run-dir", str(run_dir), "--resume"]) == 0
    assert main(["train", "--run-dir", str(straight), *small]) == 0
    resumed = [replace(m, seconds=0.0) for m in read_metrics(metrics)]
    assert resumed == [replace(m, seconds=0.0) for m in read_metrics(straight / "metrics.jsonl")]


# --- what cannot be trained is refused before anything happens ----------------------------------------------------
def refused(trainer, batches, kind, message, run_dir):
    """fit raises that, and has drawn no batch, touched no run directory and changed no parameter."""
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(kind, match=message):
        trainer.fit(batches)
    assert not run_dir.exists()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


class NoBatches:
    def __iter__(self):
        pytest.fail("a batch was drawn")


def test_a_dtype_that_the_optimizer_cannot_take(tmp_path):
    model = nn.Linear(3, 2, dtype=torch.complex64)
    optimizer = fusestep.optim.AdamW(model.parameters(), amsgrad=True)
    trainer = Trainer(model, optimizer, Constant(0.1), TrainConfig(3, run_dir=tmp_path / "run"))
    refused(trainer, NoBatches(), TypeError, r"AdamW\.step: params\[0\]: expected", tmp_path / "run")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_check_leaves_the_optimizer_as_it_was(name):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).double())
    optimizer = getattr(fusestep.optim, name)(model.parameters(), **OPTIMIZERS[name])
    before = optimizer.state_dict()
    optimizer.check_parameters()
    assert optimizer.state_dict() == before
    assert optimizer.grad_norm is None


def test_a_module_whose_kernels_cannot_run_here(tmp_path):
    class Refuses(nn.Linear):
        def check_kernels(self):
            raise ValueError("attention: query: expected another device")

    model = nn.Sequential(nn.Linear(3, 3), Refuses(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, Constant(0.1), TrainConfig(3, run_dir=tmp_path / "run"))
    refused(trainer, NoBatches(), ValueError, "expected another device", tmp_path / "run")


def test_a_gpt_asks_its_attention(monkeypatch):
    """A head dim that the kernels do not have."""
    model = small_runs.model(config=replace(small_runs.SHAPE, width=1028, heads=2))
    with pytest.raises(ValueError, match="expected a head dim of 1 to 256, got 514"):
        model.check_kernels()
    small_runs.model(config=replace(small_runs.SHAPE, width=1028, heads=2, kernels="torch")).check_kernels()
