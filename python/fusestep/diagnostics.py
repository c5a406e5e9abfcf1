"""When training does not work: check the gradients, overfit one batch, look at each layer's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusestep._refusal import check_integer, check_number, refuse
from fusestep.losses import cross_entropy


@dataclass(frozen=True)
class GradientCheck:
    """The element of a parameter on which the two gradients disagree most, of those that were tried."""

    name: str  # of the parameter
    index: tuple[int, ...]  # of the element
    analytic: float  # what backward() gave
    numeric: float  # what the differences gave
    allowed: float  # how far apart they may be

    @property
    def error(self) -> float:
        """The difference as a multiple of what is allowed; infinite when one of the two is not finite."""
        error = abs(self.analytic - self.numeric) / self.allowed
        return math.inf if math.isnan(error) else error

    @property
    def passed(self) -> bool:
        return self.error <= 1.0


def check_gradients(
    loss: Callable[[], Tensor],
    parameters: Iterable[tuple[str, Tensor]],
    *,
    elements: int = 10,
    relative_tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> list[GradientCheck]:
    """Compares the gradients of ``backward()`` with numerical ones, (L(x + h) - L(x - h)) / 2h.

    loss: computes the loss anew at every call, a scalar; the same value each time, so no dropout.
    parameters: (name, parameter) pairs, as ``model.named_parameters()`` gives; float64, because differences of
        float32 losses are mostly rounding (``model.double()`` first). Values and ``grad`` are left as found.
    elements: how many elements of each parameter are tried, drawn from ``generator``.
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
            refuse("check_gradients", name, "float64", str(parameter.dtype), "Use model.double().", TypeError)
    value = loss()
    if loss().item() != value.item():
        refuse("check_gradients", "loss", "the same value at each call", "two values", "Use model.eval().")
    gradients = torch.autograd.grad(value, [p for _, p in named], allow_unused=True, materialize_grads=True)
    epsilon = torch.finfo(torch.float64).eps
    checks = []
    for (name, parameter), gradient in zip(named, gradients, strict=True):
        tried = []
        for number in torch.randperm(parameter.numel(), generator=generator)[:elements]:
            index = tuple(int(i) for i in torch.unravel_index(number, parameter.shape))
            h = epsilon ** (1 / 3) * max(1.0, abs(parameter[index].item()))
            numeric, analytic = _central_difference(loss, parameter, index, h), float(gradient[index])
            rounding = 256 * epsilon * max(1.0, abs(value.item())) / h
            allowed = relative_tolerance * max(abs(analytic), abs(numeric)) + rounding
            tried.append(GradientCheck(name, index, analytic, numeric, allowed))
        checks.append(max(tried, key=lambda check: check.error))
    return checks


@torch.no_grad()
def _central_difference(loss: Callable[[], Tensor], parameter: Tensor, index: tuple[int, ...], h: float) -> float:
    x = parameter[index].item()
    parameter[index] = x + h
    above = loss().item()
    parameter[index] = x - h
    below = loss().item()
    parameter[index] = x
    return (above - below) / ((x + h) - (x - h))


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of one layer: of all parameters that one module holds itself."""

    name: str  # of the module
    grad_norm: float
    param_norm: float
    flag: str  # "ok", "no gradient", "not finite", "vanishing" or "exploding"


def gradient_health(model: nn.Module, *, vanishing: float | None = None, exploding: float = 1e3) -> list[LayerGradient]:
    """Looks at the gradients that the last ``backward()`` left, layer by layer, in the model's order.

    A layer is judged by the ratio of the norm of its gradient to the norm of its parameters:

    - "vanishing" below ``vanishing``; default: the machine epsilon of the parameters' dtype, where a gradient step
      at a rate of 1 is lost in rounding, so that the layer does not move;
    - "exploding" above ``exploding``; at 1000, a gradient step at a rate of 1e-3 is as long as the layer itself;
    - "not finite" with a NaN or an infinity in it, "no gradient" where ``backward()`` never came.

    Raises ValueError for limits that are negative or not finite.
    """
    if vanishing is not None:
        check_number("gradient_health", "vanishing", vanishing, 0.0)
    check_number("gradient_health", "exploding", exploding, 0.0)
    layers = []
    for name, module in model.named_modules():
        parameters = [p for p in module.parameters(recurse=False) if p.requires_grad and p.numel()]
        if not parameters:
            continue
        gradients = [p.grad for p in parameters if p.grad is not None]
        grad_norm = _norm(gradients)
        param_norm = _norm([p.detach() for p in parameters])
        least = torch.finfo(parameters[0].dtype).eps if vanishing is None else vanishing
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
        layers.append(LayerGradient(name, grad_norm, param_norm, flag))
    return layers


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@dataclass(frozen=True)
class Culprit:
    """Something that may keep a model from fitting one batch."""

    name: str
    advice: str
    evidence: str | None  # what in this attempt points to it; None: nothing that could be seen


@dataclass(frozen=True)
class OverfitReport:
    """How the attempt to overfit one batch went."""

    losses: list[float]  # before each update, and after the last one
    target: float  # the loss that had to be reached
    culprits: list[Culprit]  # when it was not: those with evidence first; else empty

    @property
    def succeeded(self) -> bool:
        return not self.culprits


def overfit_one_batch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    *,
    steps: int = 200,
    target: float | None = None,
    loss_fn: Callable[[Any, Tensor], Tensor] = cross_entropy,
) -> OverfitReport:
    """Trains on one batch over and over. A model that cannot make that loss minimal has something wrong with it.

    The model and the optimizer are changed; use them for nothing else afterwards. Dropout is off.

    batch: (inputs, targets), on the model's device.
    steps: updates at most; it stops as soon as the target is reached.
    target: the loss that counts as minimal (default: a tenth of the first one).
    """
    check_integer("overfit_one_batch", "steps", steps, 1)
    was_training = model.training
    model.eval()
    inputs, targets = batch
    losses: list[float] = []
    health: list[LayerGradient] = []
    while True:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        losses.append(float(loss.detach()))
        target = losses[0] / 10 if target is None else target
        if losses[-1] <= target or len(losses) > steps or not math.isfinite(losses[-1]):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        health = health or gradient_health(model)
        optimizer.step()
    model.train(was_training)
    return OverfitReport(losses, target, [] if losses[-1] <= target else _culprits(losses, health))


def _culprits(losses: list[float], health: list[LayerGradient]) -> list[Culprit]:
    first, last, least = losses[0], losses[-1], min(losses)
    sick = {flag: [layer.name for layer in health if layer.flag == flag] for flag in {h.flag for h in health}}
    untouched = sick.get("no gradient", [])
    extreme = [name for flag in ("vanishing", "exploding", "not finite") for name in sick.get(flag, [])]
    stuck = first - least < 0.05 * abs(first)
    blown = not math.isfinite(last) or last > 1.5 * first
    plateau = not stuck and not blown and losses[len(losses) // 2] - last < 0.05 * (first - last)

    def listed(names: list[str]) -> str:
        return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

    culprits = [
        Culprit(
            "the backward pass is wrong",
            "Compare it with numerical gradients: check_gradients.",
            f"no gradient reaches {listed(untouched)}" if untouched else None,
        ),
        Culprit(
            "a hyperparameter has an inappropriate value",
            "Try rates ten times lower and higher.",
            f"the loss went from {first:.4g} to {last:.4g}: the rate is too high"
            if blown
            else f"the loss hardly moved, from {first:.4g} to {least:.4g}: the rate may be too low"
            if stuck
            else None,
        ),
        Culprit(
            "the parameters begin at bad values",
            "Initialise by activation: fusestep.nn.init.init_weights_.",
            f"at the first step the gradient is out of proportion in {listed(extreme)}" if extreme else None,
        ),
        Culprit(
            "the model is too simple",
            "Give it more layers or width.",
            f"the loss settled at {last:.4g}" if plateau else None,
        ),
        Culprit(
            "the loss function is wrong",
            "Compute it by hand for one observation: signs, reduction, which target goes with which output.",
            f"the loss is negative, {least:.4g}, where a cross-entropy cannot be" if least < 0.0 else None,
        ),
    ]
    return sorted(culprits, key=lambda culprit: culprit.evidence is None)
