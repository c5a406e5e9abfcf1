"""Reads the checkpoints of fusestep 0.1: one file, written by ``torch.save``."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

_KEYS = {"format", "model", "optimizer", "optimizer_name", "step", "tokens", "seconds", "rng", "data"}


class NotVersion1(Exception):
    """The file is whole, but something else. Its text says what."""


def previous_path(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` was kept: ``checkpoint.pt`` -> ``checkpoint.prev.pt``."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def read(path: Path) -> dict[str, Any]:
    """The state in ``path``, in the form of today's checkpoints.

    Raises ValueError or OSError for a file that is corrupt or truncated, NotVersion1 for another kind of file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums that torch.save writes
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        # weights_only: tensors and plain containers; a file from elsewhere cannot run code.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as problem:
        raise ValueError(str(problem)) from problem
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise NotVersion1("something else")
    if state["format"] != 1:
        raise NotVersion1(f"format {state['format']}")
    random_states, data = state.pop("rng"), state.pop("data")
    key = random_states["numpy"]["state"]["key"]
    random_states["numpy"]["state"]["key"] = key.numpy().astype(np.uint32)
    return {**state, "seed": None, "ranks": [{"random": random_states, "data": data}]}
