"""The variance of activations and gradients, layer by layer; at step 0, whether the initial values are good."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fusestep._refusal import check_number
from fusestep.diagnostics import drawing
from fusestep.diagnostics.preserve import preserved, without_dropout
from fusestep.diagnostics.report import RowsReport
from fusestep.losses import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

SPREAD = 1e3


@dataclass(frozen=True)
class LayerVariance:
    """The outputs of one layer: its activations, and the gradient of the loss with respect to them."""

    name: str  # of the module
    kind: str  # its class
    weight_variance: float | None  # of ``module.weight``; None: it has none
    activation_mean: float
    activation_variance: float
    gradient_variance: float | None  # None: no gradient came


@dataclass(frozen=True)
class VarianceReport(RowsReport[LayerVariance]):
    """A ``LayerVariance`` for each layer that has parameters of its own, in the order in which they computed."""

    spread: float  # the limit that the two spreads were judged by

    @property
    def activation_spread(self) -> float:
        """The largest variance of activations over the smallest."""
        return _spread([layer.activation_variance for layer in self.rows])

    @property
    def gradient_spread(self) -> float:
        """The same of the gradients."""
        return _spread([layer.gradient_variance for layer in self.rows if layer.gradient_variance is not None])

    @property
    def flag(self) -> str:
        """ "ok", or which of the two spreads is over the limit."""
        over = {"activations": self.activation_spread, "gradients": self.gradient_spread}
        wide = [name for name, spread in over.items() if not spread <= self.spread]
        return "ok" if not wide else f"variance of {' and '.join(wide)} differs by more than {self.spread:g}"

    def summary(self) -> str:
        width = max((len(layer.name) for layer in self.rows), default=5)
        lines = [f"{'layer':{width}}  {'weights':>9}  {'outputs':>9}  {'gradients':>9}   (variances)"]
        for layer in self.rows:
            values = (layer.weight_variance, layer.activation_variance, layer.gradient_variance)
            lines.append(
                f"{layer.name:{width}}  " + "  ".join(" " * 9 if value is None else f"{value:9.2e}" for value in values)
            )
        return "\n".join(lines)

    def draw(self, figure: Figure | SubFigure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        drawing.rows_axis(left, [layer.name for layer in self.rows])
        ok = [False] * len(self)
        drawing.dots(left, [layer.activation_variance for layer in self.rows], ok)
        drawing.dots(right, [layer.gradient_variance for layer in self.rows], ok)
        drawing.style(left, f"Activations: largest / smallest {self.activation_spread:.1e}", "variance of the outputs")
        drawing.style(right, f"Gradients: largest / smallest {self.gradient_spread:.1e}", "variance of dL/d outputs")


def layer_variances(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    *,
    loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
    spread: float = SPREAD,
) -> VarianceReport:
    """The variance of each layer's outputs, and of the loss's gradient with respect to them, on one batch.

    Initial values are chosen so that neither grows nor shrinks from layer to layer (Glorot and Bengio 2010; He et al.,
    arXiv:1502.01852): called before the first update, this shows whether they do.

    batch: (inputs, targets), on the model's device.
    spread: the largest variance may be so many times the smallest before the report's ``flag`` says so. Layers of
        different kinds differ by some tens; a factor of 2 for each of 10 layers is a thousand.

    Without dropout; the model is left as found. A layer that computes several times is counted once, with its last
    outputs. Raises ValueError for a spread below 1.
    """
    check_number("layer_variances", "spread", spread, 1.0)
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def remember(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.requires_grad:
                tensor.retain_grad()
                outputs[name] = tensor

        return remember

    inputs, targets = batch
    modules = dict(model.named_modules())
    with preserved(model), contextlib.ExitStack() as hooks:
        without_dropout(model)
        for name, module in modules.items():
            if any(True for _ in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_hook(hook(name)).remove)
        loss_fn(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    rows = []
    for name, output in outputs.items():
        weight = getattr(modules[name], "weight", None)
        rows.append(
            LayerVariance(
                name,
                type(modules[name]).__name__,
                _variance(weight) if isinstance(weight, Tensor) else None,
                float(output.detach().double().mean()),
                _variance(output),
                None if output.grad is None else _variance(output.grad),
            )
        )
    return VarianceReport(tuple(rows), spread)


def _variance(tensor: Tensor) -> float:
    return float(tensor.detach().double().var(correction=0))


def _spread(variances: list[float]) -> float:
    if not variances:
        return 1.0
    return max(variances) / min(variances) if min(variances) > 0.0 else math.inf
