"""Units that pass no gradient on, whatever they are shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusestep._refusal import check_number
from fusestep.diagnostics import drawing
from fusestep.diagnostics.preserve import preserved
from fusestep.diagnostics.report import RowsReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Sigmoid,
    nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softsign,
)  # fmt: skip


@dataclass(frozen=True)
class LayerUnits:
    """The units of one activation."""

    name: str  # of the activation's module
    units: int
    dead: tuple[int, ...]  # which of them pass nothing on for any observation
    passing: float  # the mean, over all units and observations, of |derivative|

    @property
    def dead_fraction(self) -> float:
        return len(self.dead) / self.units


@dataclass(frozen=True)
class DeadUnitsReport(RowsReport[LayerUnits]):
    """A ``LayerUnits`` for each activation module that the batch went through."""

    threshold: float

    def summary(self) -> str:
        if not self.rows:
            return "no activation modules"
        width = max(len(layer.name) for layer in self.rows)
        lines = [f"{'activation':{max(width, 10)}}  {'dead':>12}  mean |derivative|"]
        for layer in self.rows:
            dead = f"{len(layer.dead)} of {layer.units}"
            lines.append(f"{layer.name:{max(width, 10)}}  {dead:>12}  {layer.passing:.3g}")
        return "\n".join(lines)

    def draw(self, figure: Figure | SubFigure) -> None:
        axes = figure.subplots()
        drawing.rows_axis(axes, [layer.name for layer in self.rows])
        for row, layer in enumerate(self.rows):
            axes.barh(row, 1.0, color=drawing.FAINT, alpha=0.2, height=0.6)
            axes.barh(row, layer.dead_fraction, color=drawing.BAD, height=0.6)
            axes.text(1.01, row, f"{len(layer.dead)} of {layer.units}", va="center", fontsize=8)
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        dead, units = sum(len(layer.dead) for layer in self.rows), sum(layer.units for layer in self.rows)
        drawing.style(axes, f"Dead units: {dead} of {units}", "dead (red) of all units")


def dead_units(model: nn.Module, inputs: Any, *, threshold: float = 1e-3) -> DeadUnitsReport:
    """Which units of the model's activations are dead on ``inputs``.

    A unit is dead where the derivative of its activation is at most ``threshold`` in absolute value for every
    observation: a ReLU that never opens, a sigmoid that is always saturated. It hands no gradient to what is before
    it. A batch of some hundreds of observations tells more than a small one.

    Activations are modules (``nn.ReLU``, ``nn.GELU``, ``nn.Sigmoid``, ...), not functions. Units are the last dimension
    of their inputs, the channels (dimension 1) of images (N, C, H, W) and volumes. Without dropout; the model is left
    as found. Raises ValueError for a threshold that is negative or not finite.
    """
    check_number("dead_units", "threshold", threshold, 0.0)
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # before, as it may work in place
            x = args[0].detach().clone()
            units = 1 if x.dim() in (4, 5) else -1
            seen.setdefault(name, []).append(_derivative(module, x).abs().movedim(units, -1).flatten(0, -2))

        return remember

    with preserved(model), contextlib.ExitStack() as hooks, torch.no_grad():
        model.eval()
        for name, module in model.named_modules():
            if isinstance(module, ELEMENTWISE):
                hooks.callback(module.register_forward_pre_hook(hook(name)).remove)
        model(inputs)
    rows = []
    for name, derivatives in seen.items():
        slopes = torch.cat(derivatives)  # (observations, units)
        dead = (slopes.amax(dim=0) <= threshold).nonzero().flatten().tolist()
        rows.append(LayerUnits(name, slopes.shape[1], tuple(dead), float(slopes.double().mean())))
    return DeadUnitsReport(tuple(rows), threshold)


def _derivative(activation: nn.Module, x: Tensor) -> Tensor:
    """Element by element, as the activation itself has it."""
    x = x.requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(activation.forward(x.clone()).sum(), x)
    return slope.detach()
