"""Gradients against central differences: is the backward pass right?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fusestep._refusal import check_integer, check_number, refuse
from fusestep.diagnostics import drawing
from fusestep.diagnostics.report import RowsReport
from fusestep.losses import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class GradientCheck:
    """The element of a parameter on which the two gradients disagree most, of those that were tried."""

    name: str  # of the parameter
    index: tuple[int, ...]  # of the element
    analytic: float  # what backward() gave
    numeric: float  # what the differences gave
    allowed: float  # how far apart they may be

    @property
    def relative_error(self) -> float:
        """|analytic - numeric| / max(|analytic|, |numeric|); 0 where both are 0, infinite where one is not finite."""
        larger = max(abs(self.analytic), abs(self.numeric))
        if larger == 0.0:
            return 0.0
        error = abs(self.analytic - self.numeric) / larger
        return math.inf if math.isnan(error) else error

    @property
    def error(self) -> float:
        """The difference as a multiple of what is allowed; infinite when one of the two is not finite."""
        error = abs(self.analytic - self.numeric) / self.allowed
        return math.inf if math.isnan(error) else error

    @property
    def passed(self) -> bool:
        return self.error <= 1.0


@dataclass(frozen=True)
class GradientCheckReport(RowsReport[GradientCheck]):
    """A ``GradientCheck`` for each parameter."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.rows)

    def summary(self) -> str:
        """A table: one line a parameter, the worst first."""
        width = max((len(check.name) for check in self.rows), default=4)
        lines = [f"{'parameter':{width}}  {'analytic':>11}  {'numeric':>11}  {'relative':>8}  "]
        for check in sorted(self.rows, key=lambda check: -check.error):
            verdict = "ok" if check.passed else f"WRONG at {list(check.index)}"
            lines.append(
                f"{check.name:{width}}  {check.analytic:11.4e}  {check.numeric:11.4e}  {check.relative_error:8.1e}"
                f"  {verdict}"
            )
        return "\n".join(lines)

    def draw(self, figure: Figure | SubFigure) -> None:
        axes = figure.subplots()
        drawing.rows_axis(axes, [check.name for check in self.rows])
        drawing.dots(
            axes, [check.error for check in self.rows], [not check.passed for check in self.rows], limits=[1.0]
        )
        wrong = sum(not check.passed for check in self.rows)
        verdict = f"{wrong} of {len(self)} parameters WRONG" if wrong else f"all {len(self)} parameters right"
        drawing.style(
            axes,
            f"Gradient check: {verdict}",
            "|analytic - numeric| as a multiple of what rounding allows (right of the dashed line: wrong)",
        )


def check_gradients(
    loss: Callable[[], Tensor],
    parameters: Iterable[tuple[str, Tensor]],
    *,
    elements: int = 10,
    relative_tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> GradientCheckReport:
    """Compares the gradients of ``backward()`` with numerical ones, (L(x + h) - L(x - h)) / 2h.

    loss: computes the loss anew at every call, a scalar; the same value each time, so no dropout.
    parameters: (name, parameter) pairs, as ``model.named_parameters()`` gives; float64, because differences of
        float32 losses are mostly rounding (``check_module`` converts a model). Values and ``grad`` are left as found.
    elements: how many elements of each parameter are tried: half of them those with the largest gradient, the others
        drawn from ``generator``.
    relative_tolerance: how far apart the two may be, relative to the larger. In addition to it the rounding of
        the difference is allowed: 256 eps |L| / h, for a loss that is the end of some hundreds of roundings.
        The step h = eps^(1/3) max(1, |x|), eps = 2.2e-16, balances that with the truncation, h^2 L''' / 6.

    Returns one ``GradientCheck`` a parameter, in their order, empty parameters left out. Raises TypeError for
    a parameter of another dtype, ValueError for a loss that changes from call to call.
    """
    check_integer("check_gradients", "elements", elements, 1)
    check_number("check_gradients", "relative_tolerance", relative_tolerance, 0.0)
    named = [(name, parameter) for name, parameter in parameters if parameter.numel()]
    for name, parameter in named:
        if parameter.dtype != torch.float64:
            refuse("check_gradients", name, "float64", str(parameter.dtype), "Use check_module.", TypeError)
    value = loss()
    if loss().item() != value.item():
        refuse("check_gradients", "loss", "the same value at each call", "two values", "Use model.eval().")
    if value.requires_grad:
        gradients = torch.autograd.grad(value, [p for _, p in named], allow_unused=True, materialize_grads=True)
    else:  # backward() gives nothing, and that may be wrong
        gradients = tuple(torch.zeros_like(p) for _, p in named)

    def evaluate() -> float:
        with torch.no_grad():
            return loss().item()

    return GradientCheckReport(
        tuple(
            _compare(name, p.detach(), gradient, evaluate, value.item(), elements, relative_tolerance, generator)
            for (name, p), gradient in zip(named, gradients, strict=True)
        )
    )


def check_module(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    *,
    loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
    elements: int = 10,
    relative_tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> GradientCheckReport:
    """``check_gradients`` of a module of any dtype, on a float64 copy of it, without dropout.

    batch: (inputs, targets), on the model's device; floating ones are converted too.
    """
    double = copy.deepcopy(model).double().eval()
    inputs, targets = (t.double() if t.is_floating_point() else t for t in batch)
    return check_gradients(
        lambda: loss_fn(double(inputs), targets),
        [(name, p) for name, p in double.named_parameters() if p.requires_grad],
        elements=elements,
        relative_tolerance=relative_tolerance,
        generator=generator,
    )


def check_function(
    function: Callable[..., float],
    gradient: Callable[..., Mapping[str, np.ndarray]],
    arrays: Mapping[str, np.ndarray],
    *,
    elements: int = 10,
    relative_tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> GradientCheckReport:
    """``check_gradients`` of functions of NumPy arrays.

    function: ``function(**arrays)`` is the value, a number.
    gradient: ``gradient(**arrays)`` is a dict with the gradient of the value with respect to each array that is to be
        checked, of its shape.
    arrays: float64. They are left as found.

    Raises TypeError for an array of another dtype, ValueError for a gradient of another shape or a value that
    changes from call to call.
    """
    check_integer("check_function", "elements", elements, 1)
    check_number("check_function", "relative_tolerance", relative_tolerance, 0.0)
    for name, array in arrays.items():
        if array.dtype != np.float64:
            refuse("check_function", name, "float64", str(array.dtype), error=TypeError)
    own = {name: array.copy() for name, array in arrays.items()}
    value = float(function(**own))
    if float(function(**own)) != value:
        refuse("check_function", "function", "the same value at each call", "two values")
    checks = []
    for name, slope in gradient(**own).items():
        if name not in own:
            refuse("check_function", "gradient", f"names of {', '.join(own)}", repr(name))
        if np.shape(slope) != own[name].shape:
            refuse("check_function", f"gradient of {name}", f"shape {own[name].shape}", f"{np.shape(slope)}")
        if own[name].size:
            x = torch.from_numpy(own[name])  # the same memory
            analytic = torch.from_numpy(np.array(slope, np.float64))
            limits = (elements, relative_tolerance, generator)
            checks.append(_compare(name, x, analytic, lambda: float(function(**own)), value, *limits))
    return GradientCheckReport(tuple(checks))


def _compare(
    name: str,
    x: Tensor,
    gradient: Tensor,
    evaluate: Callable[[], float],
    value: float,
    elements: int,
    relative_tolerance: float,
    generator: torch.Generator | None,
) -> GradientCheck:
    """The worst of some elements of ``x``, whose gradient is ``gradient`` where ``evaluate()`` is ``value``."""
    tried = []
    for number in _elements(gradient, elements, generator):
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(number), x.shape))
        h = EPSILON ** (1 / 3) * max(1.0, abs(x[index].item()))
        numeric, analytic = _central_difference(evaluate, x, index, h), float(gradient[index])
        rounding = 256 * EPSILON * max(1.0, abs(value)) / h
        allowed = relative_tolerance * max(abs(analytic), abs(numeric)) + rounding
        tried.append(GradientCheck(name, index, analytic, numeric, allowed))
    return max(tried, key=lambda check: check.error)


def _elements(gradient: Tensor, count: int, generator: torch.Generator | None) -> list[int]:
    """Half of them where the gradient is largest: most rows of an embedding have none in a small batch."""
    total = gradient.numel()
    largest = gradient.abs().flatten().topk(min((count + 1) // 2, total)).indices.tolist()
    others = [number for number in torch.randperm(total, generator=generator).tolist() if number not in largest]
    return [*largest, *others][:count]


def _central_difference(evaluate: Callable[[], float], x: Tensor, index: tuple[int, ...], h: float) -> float:
    before = x[index].item()
    x[index] = before + h
    above = evaluate()
    x[index] = before - h
    below = evaluate()
    x[index] = before
    return (above - below) / ((before + h) - (before - h))
