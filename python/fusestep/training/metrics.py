"""What is known after each update, and the file that keeps it: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class StepMetrics:
    """The state of a run after an update. The fields are those of a line of ``metrics.jsonl``."""

    step: int  # updates made, from 1
    loss: float  # mean training loss of this update's batches, before the update, dropout on
    val_loss: float | None  # mean validation loss after the update, dropout off; None: not evaluated at this step
    lr: float  # the rate of this update
    grad_norm: float | None  # the gradient's norm before clipping; None: the optimizer did not compute it
    tokens: int  # input tokens seen so far
    seconds: float  # of training so far, evaluations included, over all sessions of the run


class MetricsFile:
    """Appends to ``path``, one line a step; ``None`` writes nothing.

    Lines after ``step`` are dropped first: a run that died left steps behind its last checkpoint (and perhaps
    half a line), and they are about to be made again.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._file = None
        self._path, self._warned = path, False
        if path is None:
            return
        if path.exists():
            kept = [line for line in _lines(path) if line["step"] <= step]
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, metrics: StepMetrics) -> None:
        self.write(asdict(metrics))

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line; it has a "step"."""
        if self._file is None:
            return
        self._file.write(json.dumps(_without_nonfinite(line)) + "\n")
        try:
            self._file.flush()  # so that the file can be followed while the run goes on
        except OSError as problem:  # the line stays in the buffer: the next flush tries again
            self._warn(problem)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as problem:
            self._warn(problem)

    def _warn(self, problem: OSError) -> None:
        if not self._warned:
            warnings.warn(f"metrics: cannot write '{self._path}': {problem}. Training goes on.", stacklevel=3)
        self._warned = True


def read_metrics(path: str | Path) -> list[StepMetrics]:
    """The steps of a ``metrics.jsonl``; a loss that was not finite comes back as NaN.

    A last line cut short by a crash is left out.
    """
    steps = []
    for line in _lines(Path(path)):
        loss = math.nan if line["loss"] is None else line["loss"]
        steps.append(StepMetrics(**{**line, "loss": loss}))
    return steps


def _without_nonfinite(value: Any) -> Any:
    """JSON has no NaN and no infinity; null reads as "no number" everywhere."""
    if isinstance(value, Mapping):
        return {name: _without_nonfinite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: Path) -> list[dict[str, Any]]:
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a crash may cut the last line short
    return [json.loads(line) for line in complete.splitlines()]
