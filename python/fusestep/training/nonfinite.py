"""What is written down about an update whose loss was infinite or NaN: a line of JSON in the run directory."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fusestep.diagnostics.health import gradient_health
from fusestep.training.processes import Processes


@dataclass(frozen=True)
class SeenBatch:
    """A batch that an update was computed from."""

    loss: float
    indices: Tensor | None  # which rows of the data it was made of; None: the batches do not tell


def describe(step: int, seen: list[SeenBatch], model: nn.Module, processes: Processes) -> dict[str, Any]:
    """Which step, the batches of every process, and the health of the gradients, layer by layer.

    JSON has no NaN: losses are texts here. All ``processes`` call it together.
    """
    own = [
        {
            "rank": processes.rank,
            "loss": str(batch.loss),
            "indices": None if batch.indices is None else batch.indices.tolist(),
        }
        for batch in seen
    ]
    batches = [batch for batches in processes.gather(own) for batch in batches]
    return {"step": step, "batches": batches, "gradients": gradient_health(model).to_dict()}


def append(path: Path, description: dict[str, Any]) -> None:
    """A file that cannot be written is a warning: there may be nothing left to save but the run itself."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(description) + "\n")
    except OSError as problem:
        warnings.warn(f"'{path}' was not written: {problem}", stacklevel=4)
