"""Checkpoints: what is wrong with them is said, and the one before stays usable."""

from __future__ import annotations

import errno
import os
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import small_runs
import torch
from fusestep import Trainer, optim
from fusestep.models import GPTConfig
from fusestep.schedules import Constant
from fusestep.training import CheckpointError, checkpoint
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


def trainer(max_steps, run_dir=None, *, shape=small_runs.SHAPE, optimizer=optim.AdamW, groups=1):
    model = small_runs.model(0, shape)
    parameters = list(model.parameters())
    split = [{"params": parameters[first::groups]} for first in range(groups)]
    config = small_runs.config(max_steps, run_dir=run_dir, checkpoint_every=2)
    return Trainer(model, optimizer(split, lr=1e-3), Constant(1e-3), config)


@pytest.fixture
def run(tmp_path):
    """A run directory with the checkpoints of step 4 and, before it, of step 2."""
    trainer(4, tmp_path).fit(*small_runs.data())
    return tmp_path


def resume(path, **changes):
    resumed = trainer(6, None, **changes)
    resumed.fit(*small_runs.data(), resume_from=path)
    return resumed


def test_two_checkpoints_are_kept(run):
    steps = {
        name: torch.load(run / name, weights_only=True)["step"] for name in ("checkpoint.pt", "checkpoint.prev.pt")
    }
    assert steps == {"checkpoint.pt": 4, "checkpoint.prev.pt": 2}
    assert not list(run.glob("*.tmp"))
    assert resume(run / "checkpoint.pt").step == resume(run / "checkpoint.prev.pt").step == 6


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit_of_a_weight(path):
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["tokens.weight"].numpy().tobytes()
    content[content.index(weight) + len(weight) // 2] ^= 1
    path.write_bytes(content)


def overwrite_with_text(path):
    path.write_text("no checkpoint")


@pytest.mark.parametrize("damage", [truncate, cut_the_last_byte, empty, flip_a_bit_of_a_weight, overwrite_with_text])
def test_a_damaged_checkpoint_names_the_usable_one(run, damage):
    path = run / "checkpoint.pt"
    damage(path)
    message = (
        rf"^checkpoint: '{re.escape(str(path))}' is corrupt or truncated \(.+\)\. The checkpoint before it is usable: "
        rf"resume from '{re.escape(str(run / 'checkpoint.prev.pt'))}'\.$"
    )
    fresh = trainer(6)
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        fresh.fit(*small_runs.data(), resume_from=path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())
    assert fresh.step == 0
    assert resume(run / "checkpoint.prev.pt").step == 6


def test_damage_without_an_earlier_checkpoint(run):
    (run / "checkpoint.prev.pt").unlink()
    truncate(run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"is corrupt or truncated \(.+\)\.$"):
        resume(run / "checkpoint.pt")


def test_missing(run):
    (run / "checkpoint.pt").unlink()
    with pytest.raises(CheckpointError, match=r"expected a checkpoint, got no such file\. .*prev\.pt'\.$"):
        resume(run / "checkpoint.pt")


def test_something_else(run):
    torch.save({"weights": torch.zeros(3)}, run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of fusestep.Trainer, got something else"):
        resume(run / "checkpoint.pt")


def test_code_in_a_checkpoint_is_not_run(run):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(run / "owned"),)

    torch.save({"model": Payload()}, run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        resume(run / "checkpoint.pt")
    assert not (run / "owned").exists()


def test_another_format(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save({**state, "format": 99}, run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"format: expected 1, got 99\. It was written by another version"):
        resume(run / "checkpoint.pt")


def shape(layers: int, width: int) -> GPTConfig:
    return replace(small_runs.SHAPE, layers=layers, width=width)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": shape(2, 32)}, r"model '.*weight': expected shape \(.*\), got \(.*\)\. Build the model as it was"),
        ({"shape": shape(3, 16)}, r"expected a tensor 'blocks.2.*' as the model has, got none"),
        ({"shape": shape(1, 16)}, r"expected the tensors that the model has, got 'blocks.1.*' too"),
        ({"optimizer": optim.RMSprop}, r"optimizer: expected RMSprop, got AdamW"),
        ({"groups": 2}, r"optimizer: expected parameter groups of sizes \[\d+, \d+\], got \[\d+\]"),
    ],
)
def test_of_another_run(run, changes, message):
    with pytest.raises(CheckpointError, match=message):
        resume(run / "checkpoint.pt", **changes)


def test_of_other_data(run):
    other = trainer(6)
    with pytest.raises(CheckpointError, match=r"RandomBatches.load_state_dict: windows: expected \d+, got 27"):
        other.fit(small_runs.data(length=400)[0], resume_from=run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"batch_size: expected 2, got 4"):
        other.fit(small_runs.data(batch_size=2)[0], resume_from=run / "checkpoint.pt")


@pytest.mark.parametrize("failing", ["fsync", "first rename", "second rename"])
def test_a_write_that_fails_leaves_a_usable_checkpoint(run, monkeypatch, failing):
    rename_file, calls = os.replace, []

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def rename(source, target):
        if source.name.startswith("checkpoint"):
            calls.append(target)
            if len(calls) == {"first rename": 1, "second rename": 2}[failing]:
                full()
        rename_file(source, target)

    resumed = trainer(6, run)
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(CheckpointError, match=r"cannot write '.*checkpoint\.pt': .*No space left on device"):
        resumed.fit(*small_runs.data(), resume_from=run / "checkpoint.pt")
    monkeypatch.undo()
    usable = "checkpoint.prev.pt" if failing == "second rename" else "checkpoint.pt"
    assert torch.load(run / usable, weights_only=True)["step"] == 4
    assert resume(run / usable).step == 6


def test_all_random_generators_go_on(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    batches = small_runs.data()[0]
    checkpoint.save(tmp_path / "c.pt", model, optimizer, batches, {"step": 1, "tokens": 2, "seconds": 3.0})

    def draw():
        return torch.rand(5).tolist(), random.random(), np.random.rand(700).tolist()  # noqa: NPY002

    expected = draw()
    assert draw() != expected
    state = checkpoint.load(tmp_path / "c.pt", model, optimizer, batches)
    assert draw() == expected
    assert (state["step"], state["tokens"], state["seconds"]) == (1, 2, 3.0)
