"""Cross-entropy over class indices. The forward pass makes the gradient; the backward pass scales it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core

from .library import SingleLevelFunction, new_like, refuse_double_backward

Rule = tuple[int, float, float, str]  # ignore_index, label_smoothing, z_loss, reduction

_CUDA_IS_BUILT = bool(_core.info()["cuda_architectures"])


def has_kernel(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and _CUDA_IS_BUILT)


def cross_entropy(operation: str, logits: Tensor, labels: Tensor, rule: Rule, overwrite_logits: bool) -> Tensor:
    """Of logits (N, V) and labels (N,) on a device that has the kernel, in code that simply runs."""
    if logits.requires_grad and torch.is_grad_enabled():
        return _apply(operation, logits, labels, rule, overwrite_logits)
    return _run(operation, logits, labels, rule, None)


def _run(operation: str, logits: Tensor, labels: Tensor, rule: Rule, grad: Tensor | None) -> Tensor:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = torch.empty(logits.shape[:1] if rule[3] == "none" else (), dtype=wide, device=logits.device)
    lse = torch.empty(logits.shape[:1], dtype=wide, device=logits.device)
    _core.cross_entropy(operation, logits.detach(), labels, loss, lse, grad, *rule)
    return loss


def loss_and_gradient(
    operation: str, logits: Tensor, labels: Tensor, rule: Rule, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, of logits (N, V) that nothing else reads: the kernel writes the gradient over them."""
    if has_kernel(logits.device):
        return _run(operation, logits, labels, rule, logits if wants_gradient else None), logits
    if not wants_gradient:
        return by_torch(logits, labels, rule), logits
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = by_torch(leaf, labels, rule)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def by_torch(logits: Tensor, labels: Tensor, rule: Rule, weight: Tensor | None = None) -> Tensor:
    """The same, and what the kernel does not take, by torch's operations: any dimensions, soft labels, weights."""
    ignore_index, label_smoothing, z_loss, reduction = rule
    wide = logits if logits.dtype == torch.float64 else logits.float()
    labels = labels.to(wide.dtype) if labels.is_floating_point() else labels
    weight = None if weight is None else weight.to(wide.dtype)
    loss = F.cross_entropy(
        wide, labels, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    if z_loss == 0:
        return loss
    classes = 0 if wide.dim() == 1 else 1
    if not labels.is_floating_point():
        # Ignored rows are replaced before the logarithm: infinities in them would be NaN times zero in the gradient.
        counted = labels != ignore_index
        wide = torch.where(counted.unsqueeze(classes), wide, -math.log(wide.shape[classes]))
    squares = z_loss * wide.logsumexp(dim=classes).square()
    if reduction == "none":
        return loss + (squares if labels.is_floating_point() else squares.where(counted, 0.0))
    if labels.is_floating_point():
        return loss + (squares.mean() if reduction == "mean" else squares.sum())
    total = squares.where(counted, 0.0).sum()
    return loss + (total / counted.sum() if reduction == "mean" else total)


class _Function(SingleLevelFunction):  # type: ignore[misc]  # torch's own is untyped
    @staticmethod
    def forward(ctx: Any, operation: str, logits: Tensor, labels: Tensor, rule: Rule, overwrite_logits: bool) -> Tensor:
        grad = logits.detach() if overwrite_logits else new_like(logits)
        loss = _run(operation, logits, labels, rule, grad)
        if overwrite_logits:
            increment_version(logits)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            refuse_double_backward("cross_entropy")()
        (grad,) = ctx.saved_tensors
        if grad.device.type == "cuda":  # to look at grad_loss would be to wait
            return None, grad.mul_(grad_loss.to(grad.dtype).reshape(-1, 1)), None, None, None
        if grad_loss.dim() == 0 and grad_loss == 1:
            return None, grad, None, None, None
        return None, grad * grad_loss.to(grad.dtype).reshape(-1, 1), None, None, None


_apply: Callable[..., Tensor] = _Function.apply
