"""The settings of the training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fusestep._refusal import check_choice, check_integer, check_number

# The dtype of the parameters, in which all is computed; but under "bf16-autocast" (torch.autocast) the matrix products
# and attention take bfloat16.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-autocast": torch.float32}
ON_NONFINITE = ("raise", "skip")


@dataclass(frozen=True)
class TrainConfig:
    """What ``Trainer`` does, apart from the model, the optimizer, the schedule and the data it is given.

    Raises TypeError or ValueError, naming the field, for a value outside its range.
    """

    max_steps: int  # updates of the whole run, those before a resume included; >= 1
    accumulate: int = 1  # batches whose gradients are averaged into one update; >= 1
    on_nonfinite: str = "raise"  # one of ON_NONFINITE, for an update whose loss is infinite or NaN: see Trainer.fit
    precision: str | None = None  # one of PRECISIONS; None: that of the model's parameters, without autocast
    max_grad_norm: float | None = None  # ceiling of the gradient's norm, > 0; None: what the optimizer itself has
    clip_start: int = 0  # the first update (counted from 0) that is clipped; the warm-up's length: clip after it
    eval_every: int = 100  # updates between two evaluations (the last update is always followed by one); >= 1
    eval_batches: int | None = None  # validation batches an evaluation, the first ones; None: all
    run_dir: str | Path | None = None  # where metrics, curves and checkpoints go; None: nothing is written
    checkpoint_every: int = 100  # updates between two checkpoints (the last update is always saved); >= 1
    keep_last: int | None = 2  # checkpoints that are kept; >= 1; None: all
    overwrite: bool = False  # delete the run that run_dir holds, instead of refusing to start
    baseline_loss: float | None = None  # a loss to compare with, drawn as a line in the curves
    progress: bool = True  # a tqdm bar on stderr with loss, rate, norm and tokens/s

    def __post_init__(self) -> None:
        for name in ("max_steps", "accumulate", "eval_every", "checkpoint_every"):
            check_integer("TrainConfig", name, getattr(self, name), 1)
        if self.precision is not None:
            check_choice("TrainConfig", "precision", self.precision, PRECISIONS)
        check_choice("TrainConfig", "on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        check_integer("TrainConfig", "clip_start", self.clip_start, 0)
        if self.eval_batches is not None:
            check_integer("TrainConfig", "eval_batches", self.eval_batches, 1)
        if self.keep_last is not None:
            check_integer("TrainConfig", "keep_last", self.keep_last, 1)
        if self.max_grad_norm is not None:
            check_number("TrainConfig", "max_grad_norm", self.max_grad_norm, 0.0, exclusive=True)
        if self.baseline_loss is not None:
            check_number("TrainConfig", "baseline_loss", self.baseline_loss, -math.inf, exclusive=True)
