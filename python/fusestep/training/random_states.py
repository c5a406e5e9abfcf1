"""Every random generator that a training step may draw from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def get() -> dict[str, Any]:
    """The states of torch's generators (CPU, every CUDA device), Python's and NumPy's global one."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # what user code may draw from
    }


def set(state: Mapping[str, Any]) -> None:
    """Makes the generators go on from ``state``; those of CUDA where there is CUDA."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
