"""Checkpoints: what is wrong with them is said, and the one before stays usable."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch
from fusestep import Trainer, optim
from fusestep.models import GPTConfig
from fusestep.schedules import Constant
from fusestep.training import CheckpointError, checkpoint, checkpoint_v1
from fusestep.training.rundir import RunDir
from fusestep.training.state_tree import Flattener, unflatten
from small_runs import one_thread  # noqa: F401  # for every test of this file
from torch import nn


def trainer(
    max_steps, run_dir=None, *, shape=small_runs.SHAPE, optimizer=optim.AdamW, groups=1, dtype=None, **settings
):
    model = small_runs.model(0, shape).to(dtype)
    parameters = list(model.parameters())
    split = [{"params": parameters[first::groups]} for first in range(groups)]
    config = small_runs.config(max_steps, run_dir=run_dir, **{"checkpoint_every": 2, **settings})
    return Trainer(model, optimizer(split, lr=1e-3), Constant(1e-3), config)


@pytest.fixture
def run(tmp_path):
    """The checkpoints of step 4 and, before it, of step 2."""
    trainer(4, tmp_path).fit(*small_runs.data())
    return tmp_path / "checkpoints"


LAST, BEFORE = "step-00000004", "step-00000002"


def resume(path, **changes):
    resumed = trainer(6, None, **changes)
    resumed.fit(*small_runs.data(), resume_from=path)
    return resumed


def steps_in(directory):
    return [int(path.name.removeprefix("step-")) for path in sorted(directory.iterdir())]


def test_two_checkpoints_are_kept_and_the_last_is_found(run):
    assert steps_in(run) == [2, 4]
    assert checkpoint.find(run) == checkpoint.find(run / LAST) == run / LAST
    assert [checkpoint.read(run / name)["step"] for name in (BEFORE, LAST)] == [2, 4]
    assert resume(run).step == resume(run / BEFORE).step == 6


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [8]), (3, [4, 6, 8]), (None, [2, 4, 6, 8])])
def test_as_many_are_kept_as_asked(tmp_path, keep_last, kept):
    trainer(8, tmp_path, keep_last=keep_last).fit(*small_runs.data())
    assert steps_in(tmp_path / "checkpoints") == kept


def test_steps_after_the_one_resumed_from_are_another_run(run):
    trainer(3, run.parent, checkpoint_every=1).fit(*small_runs.data(), resume_from=run / BEFORE)
    assert steps_in(run) == [2, 3]


def test_a_checkpoint_of_the_same_step_is_replaced(run):
    first = (run / LAST / "model.safetensors").read_bytes()
    trainer(4, run.parent, checkpoint_every=4).fit(*small_runs.data(), resume_from=run / BEFORE)
    assert steps_in(run) == [2, 4]
    assert (run / LAST / "model.safetensors").read_bytes() == first


def test_the_model_is_a_file_for_everybody(run):
    from safetensors.torch import load_file

    trained = resume(run / LAST)
    trained.model.load_state_dict(load_file(run / LAST / "model.safetensors"))


# --- damage -------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_an_archive(path):
    """In the middle of its largest file: between files an archive may have room that nobody reads."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        data = archive.read(largest)
    content = path.read_bytes()
    at = content.index(data) + len(data) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def overwrite_with_text(path):
    path.write_text("no checkpoint")


def delete(path):
    path.unlink()


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", [truncate, cut_the_last_byte, empty, flip_a_bit, overwrite_with_text, delete])
def test_a_damaged_checkpoint_names_the_usable_one(run, damage, file):
    damage(run / LAST / file)
    message = (
        rf"^checkpoint: '{re.escape(str(run / LAST))}' is corrupt or truncated \(.*{file}.*\)\. "
        rf"The last good one: resume from '{re.escape(str(run / BEFORE))}'\.$"
    )
    fresh = trainer(6)
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    for path in (run, run / LAST):
        with pytest.raises(CheckpointError, match=message) as caught:
            fresh.fit(*small_runs.data(), resume_from=path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())
    assert fresh.step == 0
    assert resume(run / BEFORE).step == 6


def test_every_bit_counts(run):
    """Of the small file, each; of the others, some: whichever is flipped, the checkpoint is refused."""
    drawn = random.Random(0)
    for file in (run / LAST).iterdir():
        whole = file.read_bytes()
        for _ in range(60):
            bit = drawn.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                checkpoint.read(run / LAST)
        file.write_bytes(whole)
    assert checkpoint.read(run / LAST)["step"] == 4


def test_a_damaged_one_is_not_offered(run):
    truncate(run / LAST / "model.safetensors")
    flip_a_bit(run / BEFORE / "training.safetensors")
    with pytest.raises(CheckpointError, match=r"is corrupt or truncated \(.+\)\.$"):
        resume(run)


def test_missing(run):
    with pytest.raises(
        CheckpointError, match=r"expected a checkpoint, or a directory of them, got none\. .*000004'\.$"
    ):
        resume(run / "step-00000005")
    shutil.rmtree(run)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint, or a directory of them, got none\.$"):
        resume(run)


def rewrite_index(path, **changes):
    index = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "other"},
            r"content: expected a checkpoint of fusestep.Trainer, got something else\. The last good",
        ),
        (
            {"version": 99, "fusestep": "7.1"},
            r"version: expected 2, got 99\. It was written by fusestep 7.1, which can read it; this is .*The last good",
        ),
    ],
)
def test_something_else(run, changes, message):
    rewrite_index(run / LAST, **changes)
    with pytest.raises(CheckpointError, match=message):
        resume(run)


def shape(layers: int, width: int) -> GPTConfig:
    return replace(small_runs.SHAPE, layers=layers, width=width)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": shape(2, 32)}, r"model '.*weight': expected shape \(.*\), got \(.*\)\. Build the model as it was"),
        ({"shape": shape(3, 16)}, r"expected a tensor 'blocks.2.*' as the model has, got none"),
        ({"shape": shape(1, 16)}, r"expected the tensors that the model has, got 'blocks.1.*' too"),
        ({"optimizer": optim.RMSprop}, r"optimizer: expected RMSprop, got AdamW"),
        (
            {"dtype": torch.float64},
            r"model '.*': expected torch.float64, got torch.float32\. Build the model as it was",
        ),
        ({"groups": 2}, r"optimizer: expected parameter groups of sizes \[\d+, \d+\], got \[\d+\]"),
    ],
)
def test_of_another_run(run, changes, message):
    with pytest.raises(CheckpointError, match=message):
        resume(run, **changes)


def test_of_other_data(run):
    other = trainer(6)
    with pytest.raises(CheckpointError, match=r"RandomBatches.load_state_dict: windows: expected \d+, got 27"):
        other.fit(small_runs.data(length=400)[0], resume_from=run)
    with pytest.raises(CheckpointError, match=r"batch_size: expected 2, got 4"):
        other.fit(small_runs.data(batch_size=2)[0], resume_from=run)


# --- a disk that is full ------------------------------------------------------------------------------------


@contextmanager
def no_room():
    """Every file that this process writes ends after a kilobyte, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def failing(monkeypatch, owner, name, message):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, message)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        yield


@pytest.mark.parametrize("what", ["no room", "fsync", "rename"])
def test_a_checkpoint_that_cannot_be_written_is_a_warning(run, monkeypatch, what):
    full = {
        "no room": no_room,
        "fsync": lambda: failing(monkeypatch, os, "fsync", "No space left on device"),
        "rename": lambda: failing(monkeypatch, Path, "rename", "No space left on device"),
    }[what]
    resumed = trainer(5, run.parent, checkpoint_every=5, keep_last=1)
    resumed.step = 5
    expected = "File too large" if what == "no room" else "No space left on device"
    with full(), pytest.warns(UserWarning, match=rf"checkpoint: cannot write '.*05': .*{expected}.* Training goes on"):
        resumed._save(run, small_runs.data()[0])
    assert steps_in(run) == [2, 4]  # nothing half done, nothing lost
    assert resume(run).step == 6


def test_training_goes_on_while_the_disk_is_full(tmp_path, monkeypatch):
    """The run ends as it would have, and saves again as soon as it can."""
    real, calls = os.fsync, []

    def sometimes(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:  # in the second checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sometimes)
    training = trainer(6, tmp_path, keep_last=None)
    with pytest.warns(UserWarning, match=r"cannot write '.*step-00000004'.* Training goes on"):
        training.fit(*small_runs.data())
    assert training.step == 6
    assert steps_in(tmp_path / "checkpoints") == [2, 6]


def test_metrics_that_cannot_be_written_are_a_warning(tmp_path):
    training = trainer(60, tmp_path, checkpoint_every=60)
    with warnings.catch_warnings(record=True) as caught, no_room():
        warnings.simplefilter("always")
        training.fit(small_runs.data()[0])
    assert training.step == 60
    told = [str(w.message) for w in caught if str(w.message).startswith("metrics:")]
    assert len(told) == 1  # once a run
    assert re.match(r"metrics: cannot write '.*metrics.jsonl': .* Training goes on", told[0])


# --- killed -------------------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import small_runs, torch
from fusestep import Trainer, optim
from fusestep.schedules import WarmupCosine

torch.set_num_threads(1)

def train(run_dir):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    model = small_runs.model(1)
    resume = run_dir / "checkpoints" if any(run_dir.glob("checkpoints/step-????????")) else None
    config = small_runs.config(25, run_dir=run_dir, checkpoint_every=1, accumulate=2, overwrite=resume is None)
    schedule = WarmupCosine(1e-2, 3, 25, initial_lr=1e-3)
    trainer = Trainer(model, optim.AdamW(model.parameters()), schedule, config)
    trainer.fit(*small_runs.data(), resume_from=resume)

def child(run_dir, seconds):
    pid = os.fork()
    if pid == 0:
        train(run_dir)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

root = Path(sys.argv[1])
assert child(root / "straight", None) == 0
drawn, kills = random.Random(7), 0
for _ in range(12):
    kills += child(root / "killed", drawn.uniform(0.05, 0.25)) == signal.SIGKILL
assert child(root / "killed", None) == 0
print(kills)
"""


def test_a_run_that_is_killed_again_and_again_is_the_straight_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(small_runs.__file__).parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4  # the others came after the end
    for file in ("model.safetensors", "training.safetensors"):
        straight, killed = (tmp_path / run / "checkpoints" / "step-00000025" / file for run in ("straight", "killed"))
        assert straight.read_bytes() == killed.read_bytes()


# --- what is in them ----------------------------------------------------------------------------------------


def test_all_random_generators_go_on(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    batches = small_runs.data()[0]
    processes = [checkpoint.state_of_process(batches)]
    path = checkpoint.save(tmp_path, model, optimizer, processes, {"step": 1, "tokens": 2, "seconds": 3.0}, 1)

    def draw():
        return torch.rand(5).tolist(), random.random(), np.random.rand(700).tolist()  # noqa: NPY002

    expected = draw()
    assert draw() != expected
    state = checkpoint.load(path, model, optimizer, batches)
    assert draw() == expected
    assert (state["step"], state["tokens"], state["seconds"]) == (1, 2, 3.0)


def test_a_state_comes_back_as_it_was():
    weight = torch.arange(12.0).reshape(3, 4)
    tree = {
        "numbers": [1, -0.0, 1e-300, float("inf"), float("nan"), True, None, 2**70],
        "text": "ü\n$tensor",
        "nested": ({0: "integer key", "0": "string key", (1, 2): "pair"}, []),
        "$tensor": {"$items": 3},
        "tensors": [weight, weight, weight[1], weight.t(), torch.zeros(0, 3), torch.tensor(2.5, dtype=torch.bfloat16)],
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "array": np.arange(5, dtype=np.uint32),
    }
    flattener = Flattener()
    text = json.dumps(flattener.flatten(tree), allow_nan=False)
    back = unflatten(json.loads(text), {name: tensor.clone() for name, tensor in flattener.tensors.items()})
    assert list(back) == list(tree)
    assert repr(back["numbers"]) == repr(tree["numbers"])
    for name in ("text", "nested", "$tensor", "a.b", "a"):
        assert back[name] == tree[name]
    assert back["array"].dtype == np.uint32
    assert back["array"].tolist() == [0, 1, 2, 3, 4]
    for got, expected in zip(back["tensors"], tree["tensors"], strict=True):
        assert (got.dtype, got.shape, got.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.equal(got, expected)
    assert back["tensors"][0] is back["tensors"][1]  # tied weights: stored once
    assert sum(tensor.numel() for tensor in flattener.tensors.values()) == 12 + 4 + 12 + 0 + 1 + 1 + 1 + 5


def test_what_is_not_data_is_refused():
    with pytest.raises(TypeError, match=r"checkpoint: 'data.sampler': expected tensors, arrays.*, got object"):
        Flattener().flatten({"sampler": object()}, "data")


# --- those of fusestep 0.1 ----------------------------------------------------------------------------------


def write_v1(state, path):
    """As fusestep 0.1 wrote it."""
    own = state["ranks"][0]
    numpy_state = own["random"]["numpy"]
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    kept = {name: value for name, value in state.items() if name not in ("ranks", "seed")}
    torch.save({**kept, "format": 1, "rng": own["random"], "data": own["data"]}, path)


@pytest.fixture
def old(run):
    """checkpoint.pt of step 4 and checkpoint.prev.pt of step 2."""
    for name, file in ((LAST, "checkpoint.pt"), (BEFORE, "checkpoint.prev.pt")):
        write_v1(checkpoint.read(run / name), run.parent / file)
    return run.parent / "checkpoint.pt"


def test_an_old_checkpoint_still_resumes(run, old):
    from_new, from_old = resume(run), resume(old)
    expected = from_new.model.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in from_old.model.state_dict().items())
    assert (from_old.step, from_old.tokens) == (from_new.step, from_new.tokens)
    assert RunDir(run.parent).to_resume == run
    shutil.rmtree(run)
    assert RunDir(run.parent).to_resume == old  # a run that fusestep 0.1 began


@pytest.mark.parametrize("damage", [truncate, cut_the_last_byte, empty, flip_a_bit_of_an_archive, overwrite_with_text])
def test_a_damaged_old_checkpoint(old, damage):
    damage(old)
    message = (
        r"checkpoint.pt' is corrupt or truncated \(.+\)\. The checkpoint before it is usable: .*checkpoint.prev.pt'"
    )
    with pytest.raises(CheckpointError, match=message):
        resume(old)
    assert resume(checkpoint_v1.previous_path(old)).step == 6


def test_something_else_in_an_old_file(old):
    torch.save({"weights": torch.zeros(3)}, old)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of fusestep.Trainer, got something else"):
        resume(old)
    torch.save({**torch.load(checkpoint_v1.previous_path(old), weights_only=True), "format": 99}, old)
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of fusestep.Trainer, got format 99"):
        resume(old)


def test_code_in_an_old_checkpoint_is_not_run(old):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(old.parent / "owned"),)

    torch.save({"model": Payload()}, old)
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        resume(old)
    assert not (old.parent / "owned").exists()
