"""Can the model fit one batch? If not, who is to blame?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusestep._refusal import check_integer, check_number
from fusestep.diagnostics import drawing
from fusestep.diagnostics.attempt import Attempt
from fusestep.diagnostics.culprits import Culprit, Inquiry
from fusestep.diagnostics.preserve import preserved, without_dropout
from fusestep.diagnostics.report import Report
from fusestep.losses import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


@dataclass(frozen=True)
class OverfitReport(Report):
    """How the attempt to overfit one batch went."""

    losses: tuple[float, ...]  # before each update, and after the last one
    target: float  # the loss that had to be reached
    culprits: tuple[Culprit, ...]  # when it was not: who was examined, in this order; else empty

    @property
    def culprit(self) -> Culprit | None:
        """The first one whose guilt was measured; None: none was found, or none is needed."""
        return next((culprit for culprit in self.culprits if culprit.guilty), None)

    @property
    def succeeded(self) -> bool:
        return self.losses[-1] <= self.target and self.culprit is None

    def summary(self) -> str:
        first, last, updates = self.losses[0], self.losses[-1], len(self.losses) - 1
        went = f"from {first:.4g} to {last:.4g} in {updates} updates (target {self.target:.4g})"
        if self.succeeded:
            return f"the model fits one batch: the loss went {went}"
        lines = [f"the model does NOT fit one batch: the loss went {went}"]
        if self.culprit is not None:
            lines += [f"culprit: {self.culprit.name}: {self.culprit.measurement}", f"  {self.culprit.advice}"]
        else:
            lines.append("culprit: none found. Was the loss still falling? Then give it more steps.")
        lines += [f"  ruled out: {c.name}: {c.measurement}" for c in self.culprits if c.guilty is False]
        lines += [f"  unknown: {c.name}: {c.measurement}" for c in self.culprits if c.guilty is None]
        return "\n".join(lines)

    def draw(self, figure: Figure | SubFigure) -> None:
        axes = figure.subplots()
        colour = drawing.MAIN if self.succeeded else drawing.BAD
        axes.plot(range(len(self.losses)), self.losses, color=colour, linewidth=1.8)
        axes.axhline(self.target, color=drawing.FAINT, linestyle="--", linewidth=1.2, label=f"target {self.target:.3g}")
        if min(*self.losses, self.target) > 0.0:
            axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=8)
        if self.succeeded:
            title = "Overfit one batch: it fits"
        else:
            title = "Overfit one batch: FAILED" + (f", {self.culprit.name}" if self.culprit else ", no culprit found")
        drawing.style(axes, title, "update", "loss on that batch")


def overfit_one_batch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    *,
    steps: int = 200,
    target: float | None = None,
    loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
) -> OverfitReport:
    """Trains on one batch over and over. A model that cannot make that loss minimal has something wrong with it, and
    experiments then find what: see ``fusestep.diagnostics.culprits``.

    batch: (inputs, targets), on the model's device.
    steps: updates at most; it stops as soon as the target is reached. A search for the culprit makes up to 14 such
        attempts.
    target: the loss that counts as minimal. Default: 0.9 |L| below the first one, L, that is a tenth of a positive one;
        for ``cross_entropy`` with hard labels, L is at most log C, the loss of a guess among C classes.

    Dropout is off. Model and optimizer are left as found. Raises TypeError or ValueError for a ``steps`` or ``target``
    that is no such number.
    """
    check_integer("overfit_one_batch", "steps", steps, 1)
    if target is not None:
        check_number("overfit_one_batch", "target", target, -math.inf, exclusive=True)
    if target is None:
        target = _default_target(model, batch, loss_fn)
    attempt = Attempt(model, optimizer, batch, loss_fn, steps, target)
    losses = attempt.losses()
    # A loss below zero is no success before it was looked at: a wrong sign falls for ever.
    suspicious = not attempt.reached(losses) or min(losses) < 0.0
    culprits = Inquiry(attempt, losses).examine() if suspicious else ()
    return OverfitReport(losses, target, culprits)


@torch.no_grad()
def _default_target(model: nn.Module, batch: tuple[Tensor, Tensor], loss_fn: Callable[[Any, Tensor], Tensor]) -> float:
    inputs, targets = batch
    with preserved(model):
        without_dropout(model)
        outputs = model(inputs)
        first = float(loss_fn(outputs, targets))
    if loss_fn is cross_entropy and not targets.is_floating_point():
        guess = math.log(max(2, outputs.shape[-1]))
        first = min(first, guess) if math.isfinite(first) else guess
    return first - 0.9 * abs(first)
