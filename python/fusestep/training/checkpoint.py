"""Checkpoints: safetensors and JSON, written atomically, the last ones kept, everything checked when read.

A checkpoint is a directory ``step-00000400`` with

- ``model.safetensors``: the model's state dict, names as they are; other programs can read it;
- ``training.safetensors``: all other tensors (moments, random states, the position in the data);
- ``checkpoint.json``: everything else, with the length and SHA-256 of the two, and its own.

There is no pickle in it: reading one cannot run code. It gets its name when it is complete on the disk, so whenever
the process or the machine dies, what has such a name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import fusestep
from fusestep._refusal import refuse
from fusestep.training import checkpoint_v1, random_states, sharding
from fusestep.training.state_tree import Flattener, same, unflatten

try:
    import safetensors.torch
    from safetensors import SafetensorError
except ImportError as missing:
    message = f"fusestep.Trainer keeps its checkpoints with safetensors: {missing}. Try: pip install 'fusestep[train]'"
    raise ImportError(message) from missing

FORMAT, VERSION = "fusestep.Trainer", 2
INDEX, MODEL, TRAINING = "checkpoint.json", "model.safetensors", "training.safetensors"
_NAME = re.compile(r"step-(\d+)")
_UNFINISHED, _GOING = ".tmp", ".old"  # what a process that died may leave behind


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, cannot be read, or belongs to something else."""


class Damaged(Exception):
    """What a checkpoint holds is not what was written."""


class Foreign(Exception):
    """What could be a checkpoint is something else, or newer than this program: (argument, expected, got, remedy)."""


def state_of_process(batches: object) -> dict[str, Any]:
    """What every process has of its own: its random states and its position in the data, if that can be told."""
    data = batches.state_dict() if hasattr(batches, "state_dict") else None
    return {"random": random_states.get(), "data": data}


def save(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Sequence[Mapping[str, Any]],
    progress: Mapping[str, Any],
    keep_last: int | None,
    *,
    writes: bool = True,
) -> Path:
    """Writes everything that a run needs to go on into a new checkpoint in ``directory``; returns its path.

    The tensors of a sharded model are gathered: all processes call this, and one has ``writes``.

    processes: the ``state_of_process`` of each.
    progress: kept as it is; its "step" names the checkpoint.
    keep_last: how many checkpoints up to this step are kept, this one included; None: all. Those of later steps are
        deleted: they were made before the run was resumed from an earlier one.

    Raises CheckpointError when it cannot be written, and TypeError for a state that is not plain data; the earlier
    checkpoints are then untouched.
    """
    target = directory / f"step-{progress['step']:08d}"
    model_state, optimizer_state = sharding.whole(dict(model.state_dict())), sharding.whole(optimizer.state_dict())
    if not writes:
        return target
    model_tensors, training_tensors = Flattener(), Flattener()
    state = {
        "model": model_tensors.flatten(model_state),
        "optimizer": training_tensors.flatten(optimizer_state, "optimizer"),
        "optimizer_name": type(optimizer).__name__,
        "ranks": training_tensors.flatten(list(processes), "ranks"),
        **progress,
    }
    unfinished = target.with_name(target.name + _UNFINISHED)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        unfinished.mkdir()
        safetensors.torch.save_file(model_tensors.tensors, unfinished / MODEL)
        safetensors.torch.save_file(training_tensors.tensors, unfinished / TRAINING)
        index = {
            "format": FORMAT,
            "version": VERSION,
            "fusestep": fusestep.__version__,
            "torch": torch.__version__,
            "files": {name: _measure(unfinished / name) for name in (MODEL, TRAINING)},
            "state": state,
        }
        index["sha256"] = _own_checksum(index)
        (unfinished / INDEX).write_text(json.dumps(index), encoding="utf-8")
        for path in (unfinished / MODEL, unfinished / TRAINING, unfinished / INDEX, unfinished):
            _make_durable(path)
        for step, stale in _checkpoints(directory):
            if step >= progress["step"]:
                _remove(stale)
        unfinished.rename(target)
        _make_durable(directory)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"checkpoint: cannot write '{target}': {_one_line(problem)}") from problem
    if keep_last is not None:
        for _, old in _checkpoints(directory)[:-keep_last]:
            _remove(old)
    return target


def find(path: Path) -> Path:
    """The checkpoint that ``path`` stands for: itself, or the last one in a directory of checkpoints.

    A file is taken for one of fusestep 0.1. Raises CheckpointError when there is none.
    """
    if path.is_file() or (path / INDEX).is_file() or (path.is_dir() and _NAME.fullmatch(path.name)):
        return path
    checkpoints = _checkpoints(path)
    if not checkpoints:
        _refuse(path, "path", "a checkpoint, or a directory of them", "none", _remedy(path))
    return checkpoints[-1][1]


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    rank: int = 0,
    count: int = 1,
) -> dict[str, Any]:
    """Puts the state of ``path`` into ``model``, ``optimizer``, ``batches`` and the random generators.

    rank, count: which process this is, and of how many. Another number than when the checkpoint was written is possible
        where the position in the data was the same for all.

    Returns the whole state, with the ``progress`` that ``save`` was given. Raises CheckpointError when the checkpoint
    is missing, damaged, of a newer version, or of another model, optimizer or data. Nothing has been changed then.
    """
    path = find(path)
    state = read(path)
    _check_model(path, model, state["model"])
    name = type(optimizer).__name__
    if state["optimizer_name"] != name:
        _refuse(path, "optimizer", name, state["optimizer_name"], "Resume with the optimizer of the run.")
    sizes = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        _refuse(path, "optimizer", f"parameter groups of sizes {expected}", f"{sizes}")
    data = _position(path, [process["data"] for process in state["ranks"]], rank, count)
    try:
        batches.load_state_dict(data)
    except ValueError as problem:
        raise CheckpointError(f"checkpoint '{path}': {problem}") from problem
    model.load_state_dict(sharding.as_placed(state["model"], model.state_dict()))
    optimizer.load_state_dict(sharding.optimizer_state_as_placed(state["optimizer"], optimizer))
    if rank < len(state["ranks"]):
        random_states.set(state["ranks"][rank]["random"])
    return state


def _position(path: Path, positions: list[Any], rank: int, count: int) -> Any:
    """The position in the data with which process ``rank`` of ``count`` goes on."""
    if positions[0] is None:
        _refuse(path, "data", "the position in the training batches", "none", "They had no state_dict.")
    if len(positions) == count:
        return positions[rank]
    if not all(same(position, positions[0]) for position in positions):
        remedy = f"Resume on {len(positions)} processes, or train on batches of fusestep.data."
        _refuse(path, "data", f"the positions of {count} processes", f"{len(positions)}", remedy)
    return positions[0]


def read(path: Path) -> dict[str, Any]:
    """The whole state in the checkpoint ``path``. Raises CheckpointError as ``load`` does."""
    try:
        if path.is_file():
            return checkpoint_v1.read(path)
        state = _verified_index(path)["state"]
        model = unflatten(state.pop("model"), safetensors.torch.load_file(path / MODEL))
        rest: dict[str, Any] = unflatten(state, safetensors.torch.load_file(path / TRAINING))
        return {**rest, "model": model}
    except checkpoint_v1.NotVersion1 as problem:
        _refuse(path, "content", "a checkpoint of fusestep.Trainer", str(problem), _remedy(path))
    except Foreign as problem:
        argument, expected, got, remedy = problem.args
        _refuse(path, argument, expected, got, f"{remedy} {_remedy(path)}")
    except (OSError, ValueError, Damaged) as problem:
        message = f"checkpoint: '{path}' is corrupt or truncated ({_one_line(problem)}). {_remedy(path)}"
        raise CheckpointError(message.strip()) from problem


def _verified_index(path: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` holds, when it and the files that it names are as they were written."""
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise Damaged(f"{INDEX}: {_one_line(problem)}") from problem
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise Foreign("content", "a checkpoint of fusestep.Trainer", "something else", "")
    if index.get("version") != VERSION:
        remedy = (
            f"It was written by fusestep {index.get('fusestep')}, which can read it; this is {fusestep.__version__}."
        )
        raise Foreign("version", str(VERSION), str(index.get("version")), remedy)
    if index.pop("sha256", None) != _own_checksum(index):
        raise Damaged(f"wrong checksum of {INDEX}")
    for name, expected in index["files"].items():
        if not (path / name).is_file():
            raise Damaged(f"{name} is missing")
        found = _measure(path / name)
        for what in ("bytes", "sha256"):
            if found[what] != expected[what]:
                raise Damaged(f"{name}: expected {what} {expected[what]}, got {found[what]}")
    return index


def _measure(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _own_checksum(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _check_model(path: Path, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    remedy = "Build the model as it was for this run."
    own = model.state_dict()
    for name in own.keys() - saved.keys():
        _refuse(path, "model", f"a tensor '{name}' as the model has", "none", remedy)
    for name, tensor in saved.items():
        if name not in own:
            _refuse(path, "model", "the tensors that the model has", f"'{name}' too", remedy)
        if tensor.shape != own[name].shape:
            _refuse(path, f"model '{name}'", f"shape {tuple(own[name].shape)}", f"{tuple(tensor.shape)}", remedy)
        if tensor.dtype != own[name].dtype:
            _refuse(path, f"model '{name}'", str(own[name].dtype), str(tensor.dtype), remedy)


def _refuse(path: Path, argument: str, expected: str, got: str, remedy: str = "") -> NoReturn:
    refuse(f"checkpoint '{path}'", argument, expected, got, remedy.strip(), CheckpointError)


def _remedy(path: Path) -> str:
    """Which checkpoint can be used instead of the one at ``path``, if there is one."""
    previous = checkpoint_v1.previous_path(path)
    if previous.is_file():
        return f"The checkpoint before it is usable: resume from '{previous}'."
    for _, other in reversed(_checkpoints(path.parent)):
        if other != path and _is_whole(other):
            return f"The last good one: resume from '{other}'."
    return ""


def _is_whole(path: Path) -> bool:
    try:
        _verified_index(path)
    except (Damaged, Foreign, OSError):
        return False
    return True


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of those in ``directory``, in the order of their steps."""
    found = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir()] if directory.is_dir() else []
    return sorted((int(match[1]), path) for match, path in found if match)


def remove_all(directory: Path) -> None:
    """Deletes the checkpoints in ``directory``, and it too when nothing else is in it."""
    _remove_leftovers(directory)
    for _, path in _checkpoints(directory):
        _remove(path)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _remove(path: Path) -> None:
    """Deletes a checkpoint. While that goes on, it has no longer the name of one."""
    shutil.rmtree(path.rename(path.with_name(path.name + _GOING)))


def _remove_leftovers(directory: Path) -> None:
    for ending in (_UNFINISHED, _GOING):
        for path in directory.glob(f"step-*{ending}"):
            shutil.rmtree(path)


def _make_durable(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk (directories: not on Windows)."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _one_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0] or type(problem).__name__
