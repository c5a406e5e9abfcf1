"""``torchrun -m fusestep train``, as a user meets it. Everything that is started ends within a minute or two."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from fusestep.cli import main
from fusestep.training import checkpoint, read_metrics
from small_runs import one_thread  # noqa: F401  # for every test of this file

pytestmark = pytest.mark.slow

SMALL = ["--batch-size", "4", "--context", "16", "--dropout", "0", "--eval-every", "50"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
DASHBOARD = ["--dashboard", "tensorboard"] if find_spec("tensorboard") else []
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(processes, *arguments, timeout=400):
    return subprocess.run(
        [*TORCHRUN, str(processes), "-m", "fusestep", "train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=ENVIRONMENT,
    )


def first_norms(path):
    layers = json.loads(path.read_text().splitlines()[0])["layers"]
    return {name: layer["grad_norm"] for name, layer in layers.items()}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    return path


@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="data parallel", marks=pytest.mark.exhaustive), pytest.param(["--shard"], id="sharded")],
)
def test_two_processes_train_as_one_and_one_of_them_speaks(tmp_path, text, options):
    arguments = ["--text", text, *SMALL, "--steps", "6", "--accumulate", "2", "--eval-every", "3"]
    done = torchrun(2, *arguments, *options, *DASHBOARD, "--run-dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert main(["train", *map(str, arguments), "--run-dir", str(tmp_path / "one")]) == 0
    two, one = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("two", "one"))
    assert [(m.step, m.tokens, m.lr) for m in two] == [(m.step, m.tokens, m.lr) for m in one]
    # float32: six updates apart by roundings; a lost or doubled share moves a loss by 1e-2 and more.
    assert [m.loss for m in two] == pytest.approx([m.loss for m in one], rel=1e-4)
    evaluated = [(m.val_loss, n.val_loss) for m, n in zip(two, one, strict=True) if n.val_loss is not None]
    assert len(evaluated) == 2
    assert [m for m, _ in evaluated] == pytest.approx([n for _, n in evaluated], rel=1e-4)
    assert done.stdout.count("processes  2, each with its share of every batch") == 1
    assert done.stdout.count("a sample") == 1
    assert done.stdout.count("after 6 steps") == 1
    names = {path.name for path in (tmp_path / "two").iterdir()}
    files = {"config.json", "metrics.jsonl", "health.jsonl", "curves.png", "checkpoints", "sample.txt"}
    assert names == files | set(DASHBOARD[1:])
    if DASHBOARD:
        assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    # The gradients of the first update, layer by layer: those of the whole batch, in shards too.
    two, one = (first_norms(tmp_path / run / "health.jsonl") for run in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-4)


def test_a_mistake_is_told_once(tmp_path, text):
    done = torchrun(2, "--text", text, *SMALL, "--batch-size", "5", "--run-dir", tmp_path / "run")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("fusestep: ")]
    assert len(said) == 1
    assert "batch_size: expected a multiple of the 2 processes, got 5" in said[0]


def workers(launcher: int) -> dict[int, int]:
    """The process of each rank."""
    found = {}
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = int(child)
    return found


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_the_end_of_one_process_is_the_end_of_the_job(tmp_path, text, killed):
    run_dir = tmp_path / "run"
    arguments = ["--text", text, *SMALL, "--steps", "100000", "--run-dir", run_dir]
    launcher = subprocess.Popen(
        [*TORCHRUN, "2", "-m", "fusestep", "train", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        deadline = time.monotonic() + 120
        while not any(run_dir.glob("checkpoints/step-????????")):
            assert launcher.poll() is None, launcher.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(workers(launcher.pid)[killed], signal.SIGKILL)
        began = time.monotonic()
        _, error = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert time.monotonic() - began < 60
    assert launcher.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in error  # torchrun's own error, which names the rank
    assert sum(line.startswith("fusestep: ") for line in error.splitlines()) <= 1
    assert checkpoint.read(checkpoint.find(run_dir / "checkpoints"))["step"] >= 100
    steps = checkpoint.read(checkpoint.find(run_dir / "checkpoints"))["step"] + 1
    assert main(["train", "--run-dir", str(run_dir), "--resume", "--steps", str(steps)]) == 0
    assert read_metrics(run_dir / "metrics.jsonl")[-1].step == steps
