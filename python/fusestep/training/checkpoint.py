"""Checkpoints: written atomically, the one before kept, everything checked when read."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from fusestep._refusal import refuse

FORMAT = 1  # of the dictionary below; a reader refuses any other
_KEYS = {"format", "model", "optimizer", "optimizer_name", "step", "tokens", "seconds", "rng", "data"}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, cannot be read, or belongs to something else."""


def previous_path(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is kept: ``checkpoint.pt`` -> ``checkpoint.prev.pt``."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: object,
    progress: Mapping[str, float],
) -> None:
    """Writes everything that a run needs to go on, with the random states of this moment.

    The position in ``batches`` is kept when they have a ``state_dict``; ``progress`` is kept as it is. The
    file is complete on the disk before it takes the name ``path``, and what had that name before is kept as
    ``previous_path(path)``: whenever the process or the machine dies, one of the two is usable.
    Raises CheckpointError when the file cannot be written; the earlier checkpoints are then untouched.
    """
    state = {
        "format": FORMAT,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "optimizer_name": type(optimizer).__name__,
        "data": batches.state_dict() if hasattr(batches, "state_dict") else None,
        "rng": _rng_state(),
        **progress,
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous_path(path))
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as problem:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"checkpoint: cannot write '{path}': {_one_line(problem)}") from problem


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any) -> dict[str, Any]:
    """Puts the state of ``path`` into ``model``, ``optimizer``, ``batches`` and the random generators.

    Returns the whole state, with the ``progress`` that ``save`` was given. Raises CheckpointError when the
    file is missing, corrupt, truncated, or of another model, optimizer or data. Nothing has been changed then.
    """
    state = _read(path)
    _check_model(path, model, state["model"])
    name = type(optimizer).__name__
    if state["optimizer_name"] != name:
        _refuse(path, "optimizer", name, state["optimizer_name"], "Resume with the optimizer of the run.")
    sizes = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        _refuse(path, "optimizer", f"parameter groups of sizes {expected}", f"{sizes}")
    if state["data"] is None:
        _refuse(path, "data", "the position in the training batches", "none", "They had no state_dict.")
    try:
        batches.load_state_dict(state["data"])
    except ValueError as problem:
        raise CheckpointError(f"checkpoint '{path}': {problem}") from problem
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    _set_rng_state(state["rng"])
    return state


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        _refuse(path, "path", "a checkpoint", "no such file", _remedy(path))
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums that torch.save writes
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        # weights_only: tensors and plain containers; a file from elsewhere cannot run code.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as problem:
        raise CheckpointError(
            f"checkpoint: '{path}' is corrupt or truncated ({_one_line(problem)}). {_remedy(path)}".strip()
        ) from problem
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        _refuse(path, "content", "a checkpoint of fusestep.Trainer", "something else", _remedy(path))
    found: dict[str, Any] = state
    if found["format"] != FORMAT:
        remedy = "It was written by another version of fusestep."
        _refuse(path, "format", str(FORMAT), str(found["format"]), remedy)
    return found


def _check_model(path: Path, model: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    remedy = "Build the model as it was for this run."
    own = model.state_dict()
    for name in own.keys() - saved.keys():
        _refuse(path, "model", f"a tensor '{name}' as the model has", "none", remedy)
    for name, tensor in saved.items():
        if name not in own:
            _refuse(path, "model", "the tensors that the model has", f"'{name}' too", remedy)
        if tensor.shape != own[name].shape:
            _refuse(path, f"model '{name}'", f"shape {tuple(own[name].shape)}", f"{tuple(tensor.shape)}", remedy)


def _refuse(path: Path, argument: str, expected: str, got: str, remedy: str = "") -> NoReturn:
    refuse(f"checkpoint '{path}'", argument, expected, got, remedy, CheckpointError)


def _remedy(path: Path) -> str:
    previous = previous_path(path)
    return f"The checkpoint before it is usable: resume from '{previous}'." if previous.is_file() else ""


def _rng_state() -> dict[str, Any]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # what user code may draw from
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": numpy_state,
    }


def _set_rng_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    numpy_state["state"]["key"] = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002


def _sync_directory(directory: Path) -> None:
    """Makes the renames durable, where a directory can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _one_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0] or type(problem).__name__
