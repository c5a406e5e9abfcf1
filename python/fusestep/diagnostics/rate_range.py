"""The learning-rate range test: which rates does this model learn at?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusestep._refusal import check_integer, check_number, refuse
from fusestep.diagnostics import drawing
from fusestep.diagnostics.preserve import preserved
from fusestep.diagnostics.report import Report
from fusestep.losses import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

DIVERGED = 4.0  # times the least loss so far
SMOOTHING = 0.8  # the weight of what was before, in the running mean of the losses


@dataclass(frozen=True)
class RateRangeReport(Report):
    """The loss at rates that grow from update to update."""

    rates: tuple[float, ...]  # of each update
    losses: tuple[float, ...]  # before each update
    smoothed: tuple[float, ...]  # the running mean of the losses, without bias
    steepest: float | None  # the rate at which the smoothed loss falls fastest; None: it never fell
    lowest: float | None  # the rate at which the smoothed loss is least
    diverged: float | None  # the rate at which the test ended because the loss blew up; None: it did not

    @property
    def suggestion(self) -> float | None:
        """A rate to begin with: a tenth of the one with the lowest loss, or the steepest if that is less."""
        if self.steepest is None or self.lowest is None:
            return None
        return min(self.steepest, self.lowest / 10)

    def summary(self) -> str:
        if self.suggestion is None:
            return f"the loss fell at none of the rates from {self.rates[0]:.1e} to {self.rates[-1]:.1e}"
        end = "never blew up" if self.diverged is None else f"blew up at {self.diverged:.1e}"
        return (
            f"the loss fell fastest at a rate of {self.steepest:.1e}, was lowest at {self.lowest:.1e} and {end};"
            f" begin with {self.suggestion:.1e}"
        )

    def draw(self, figure: Figure | SubFigure) -> None:
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color=drawing.MAIN, alpha=0.3, linewidth=0.8)
        axes.plot(self.rates, self.smoothed, color=drawing.MAIN, linewidth=1.8)
        for rate, colour, style, name in (
            (self.suggestion, drawing.THIRD, "-", "begin with"),
            (self.lowest, drawing.FAINT, "--", "lowest loss at"),
            (self.diverged, drawing.BAD, "--", "blew up at"),
        ):
            if rate is not None:
                axes.axvline(rate, color=colour, linestyle=style, linewidth=1.6, label=f"{name} {rate:.1e}")
        top = max(self.smoothed[0], *self.smoothed[: max(1, len(self.smoothed) - 3)])
        least = min(self.smoothed)
        margin = 0.15 * max(top - least, 1e-3 * abs(top), 1e-12)
        axes.set_ylim(least - margin, top + 2 * margin)  # the last steps of a divergence would flatten all else
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=8)
        drawing.style(axes, "Learning-rate range test", "learning rate", "training loss")


def rate_range(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
) -> RateRangeReport:
    """Trains for ``steps`` updates, the rate growing by equal factors from ``lowest`` to ``highest`` (Smith,
    arXiv:1506.01186), and looks at the loss.

    batches: pairs (inputs, targets), on the model's device; they may be fewer than ``steps``, and are then repeated.

    It ends early where the smoothed loss is above ``DIVERGED`` times its least value, or not finite. With dropout, as
    the model is trained. Model and optimizer are left as found. Raises ValueError for rates that are not 0 < lowest <
    highest, for fewer than two steps, for no batches, and for a loss that is not finite from the beginning.
    """
    check_integer("rate_range", "steps", steps, 2)
    check_number("rate_range", "lowest", lowest, 0.0, exclusive=True)
    check_number("rate_range", "highest", highest, lowest, exclusive=True)
    kept = [batch for _, batch in zip(range(steps), batches, strict=False)]
    if not kept:
        refuse("rate_range", "batches", "at least one batch", "none")
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    diverged, mean = None, 0.0
    with preserved(model, optimizer):
        model.train()
        for step in range(steps):
            rate = lowest * (highest / lowest) ** (step / (steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            inputs, targets = kept[step % len(kept)]
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            value = float(loss.detach())
            mean = SMOOTHING * mean + (1 - SMOOTHING) * value
            average = mean / (1 - SMOOTHING ** (step + 1))
            if step == 0 and not math.isfinite(value):
                refuse("rate_range", "loss", "a finite number before the first update", str(value))
            if not math.isfinite(average) or (smoothed and average > DIVERGED * min(smoothed) > 0.0):
                diverged = rate
                break
            rates.append(rate)
            losses.append(value)
            smoothed.append(average)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return _judged(rates, losses, smoothed, diverged)


def _judged(rates: list[float], losses: list[float], smoothed: list[float], diverged: float | None) -> RateRangeReport:
    steepest = lowest = None
    least = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if least > 0 and smoothed[least] < smoothed[0]:
        lowest = rates[least]
        # By the logarithm of the rate, which grows by equal steps; over two of them, as one step is mostly noise.
        slopes = {step: smoothed[min(step + 1, len(smoothed) - 1)] - smoothed[step - 1] for step in range(1, least + 1)}
        steepest = rates[min(slopes, key=slopes.__getitem__)]
    return RateRangeReport(tuple(rates), tuple(losses), tuple(smoothed), steepest, lowest, diverged)
