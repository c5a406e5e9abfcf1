"""The gradient layer by layer: does it vanish, does it explode, and how far does an update move each layer?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusestep._mesh import whole
from fusestep._refusal import check_number
from fusestep.diagnostics import drawing
from fusestep.diagnostics.preserve import preserved, without_dropout
from fusestep.diagnostics.report import RowsReport
from fusestep.losses import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

EXPLODING = 1e3
USUAL_UPDATES = (1e-4, 1e-2)  # update-to-weight ratios of runs that go well; a hint, not a limit


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of one layer: of all parameters that one module holds itself."""

    name: str  # of the module
    grad_norm: float
    grad_max: float  # the largest absolute value
    param_norm: float
    update_ratio: float | None  # norm of the update / norm of the parameters before it; None: no update was measured
    flag: str  # "ok", "no gradient", "not finite", "vanishing" or "exploding"

    @property
    def ratio(self) -> float:
        """grad_norm / param_norm, by which a layer is judged; infinite for parameters that are all zero."""
        if self.param_norm == 0.0:
            return math.inf if self.grad_norm > 0.0 else 0.0
        return self.grad_norm / self.param_norm


@dataclass(frozen=True)
class HealthReport(RowsReport[LayerGradient]):
    """A ``LayerGradient`` for each layer, and the limits that they were judged by."""

    vanishing: float
    exploding: float

    @property
    def sick(self) -> dict[str, list[str]]:
        """The names of the layers by flag, those that are ok left out."""
        flags = dict.fromkeys(layer.flag for layer in self.rows if layer.flag != "ok")
        return {flag: [layer.name for layer in self.rows if layer.flag == flag] for flag in flags}

    def with_updates(self, norms: Mapping[str, float]) -> HealthReport:
        """The same with ``update_ratio``, from the norm of each layer's update (``update_norms``)."""
        rows = [
            replace(layer, update_ratio=norms[layer.name] / layer.param_norm if layer.param_norm > 0.0 else None)
            for layer in self.rows
        ]
        return replace(self, rows=tuple(rows))

    def summary(self) -> str:
        width = max((len(layer.name) for layer in self.rows), default=5)
        lines = [f"{'layer':{width}}  {'|grad|':>9}  {'largest':>9}  {'|weights|':>9}  {'update':>9}"]
        for layer in self.rows:
            update = "" if layer.update_ratio is None else f"{layer.update_ratio:9.2e}"
            lines.append(
                f"{layer.name:{width}}  {layer.grad_norm:9.2e}  {layer.grad_max:9.2e}  {layer.param_norm:9.2e}"
                f"  {update:>9}  {'' if layer.flag == 'ok' else layer.flag.upper()}".rstrip()
            )
        return "\n".join(lines)

    def draw(self, figure: Figure | SubFigure) -> None:
        updated = any(layer.update_ratio is not None for layer in self.rows)
        panels = figure.subplots(1, 2 if updated else 1, sharey=True, squeeze=False)[0]
        bad = [layer.flag != "ok" for layer in self.rows]
        drawing.rows_axis(
            panels[0], [layer.name + ("" if layer.flag == "ok" else f"  {layer.flag}") for layer in self.rows]
        )
        drawing.dots(panels[0], [layer.ratio for layer in self.rows], bad, limits=[self.vanishing, self.exploding])
        for label, is_bad in zip(panels[0].get_yticklabels(), bad, strict=True):
            if is_bad:
                label.set_color(drawing.BAD)
        verdict = "; ".join(f"{len(names)} {flag}" for flag, names in self.sick.items()) or "all layers ok"
        limits = f"vanishing below {self.vanishing:.0e}, exploding above {self.exploding:.0e}"
        drawing.style(panels[0], f"Gradient health: {verdict}", f"|gradient| / |weights|\n({limits})")
        if updated:
            drawing.dots(panels[1], [layer.update_ratio for layer in self.rows], [False] * len(self))
            panels[1].axvspan(*USUAL_UPDATES, color=drawing.THIRD, alpha=0.12, linewidth=0)
            drawing.style(panels[1], "How far one update moves", "|update| / |weights|\n(green: usual)")


def gradient_health(
    model: nn.Module,
    *,
    vanishing: float | None = None,
    exploding: float = EXPLODING,
) -> HealthReport:
    """Looks at the gradients that the last ``backward()`` left, layer by layer, in the model's order.

    A layer is judged by the ratio of the norm of its gradient to the norm of its parameters:

    - "vanishing" below ``vanishing``; default: the machine epsilon of the parameters' dtype, where a gradient step
      at a rate of 1 is lost in rounding, so that the layer does not move;
    - "exploding" above ``exploding``; at 1000, a gradient step at a rate of 1e-3 is as long as the layer itself;
    - "not finite" with a NaN or an infinity in it, "no gradient" where ``backward()`` never came.

    Of a sharded model (FSDP2) all processes call it together. Raises ValueError for limits that are negative or not
    finite.
    """
    if vanishing is not None:
        check_number("gradient_health", "vanishing", vanishing, 0.0)
    check_number("gradient_health", "exploding", exploding, 0.0)
    layers = []
    smallest = math.inf
    for name, parameters in layers_of(model).items():
        gradients = [p.grad for p in parameters if p.grad is not None]
        grad_norm, grad_max = norm(gradients), _largest(gradients)
        param_norm = norm(parameters)
        least = torch.finfo(parameters[0].dtype).eps if vanishing is None else vanishing
        smallest = min(smallest, least)
        if not gradients:
            flag = "no gradient"
        elif not math.isfinite(grad_norm):
            flag = "not finite"
        elif grad_norm == 0.0 or grad_norm < least * param_norm:
            flag = "vanishing"
        elif param_norm > 0.0 and grad_norm > exploding * param_norm:
            flag = "exploding"
        else:
            flag = "ok"
        layers.append(LayerGradient(name, grad_norm, grad_max, param_norm, None, flag))
    return HealthReport(tuple(layers), smallest if layers else 0.0, exploding)


def model_health(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
    vanishing: float | None = None,
    exploding: float = EXPLODING,
) -> HealthReport:
    """``gradient_health`` of one batch, without dropout; with ``optimizer``, of the update that it would make, too.

    batch: (inputs, targets), on the model's device.

    Model, gradients and optimizer are left as found.
    """
    inputs, targets = batch
    with preserved(model, optimizer):
        without_dropout(model)
        loss_fn(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        report = gradient_health(model, vanishing=vanishing, exploding=exploding)
        if optimizer is None:
            return report
        before = copies_of(model)
        optimizer.step()
        return report.with_updates(update_norms(model, before))


def layers_of(model: nn.Module) -> dict[str, list[Tensor]]:
    """The trained parameters that each module holds itself, by the module's name; modules without any left out."""
    layers: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        parameters = [p for p in module.parameters(recurse=False) if p.requires_grad and p.numel()]
        if parameters:
            layers[name] = list(parameters)
    return layers


def copies_of(model: nn.Module) -> dict[str, list[Tensor]]:
    """Copies of ``layers_of(model)``, for ``update_norms`` after the update."""
    return {name: [p.detach().clone() for p in parameters] for name, parameters in layers_of(model).items()}


def update_norms(model: nn.Module, before: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """How far each layer has moved from ``before``: the norm of the update, by the layer's name."""
    return {
        name: norm([p.detach() - old for p, old in zip(parameters, before[name], strict=True)])
        for name, parameters in layers_of(model).items()
    }


def norm(tensors: list[Tensor]) -> float:
    """The 2-norm of all elements together, in float64."""
    return math.sqrt(sum(float(_whole(tensor).double().square().sum()) for tensor in tensors))


def _largest(tensors: list[Tensor]) -> float:
    return max((float(_whole(tensor).abs().max()) for tensor in tensors), default=0.0)


def _whole(tensor: Tensor) -> Tensor:
    return whole(tensor.detach())
