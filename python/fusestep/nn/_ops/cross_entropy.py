"""Cross-entropy over class indices. The forward pass makes the gradient; the backward pass scales it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core

from .library import SingleLevelFunction, refuse_double_backward

Rule = tuple[int, float, float, str]  # ignore_index, label_smoothing, z_loss, reduction


def cross_entropy(operation: str, logits: Tensor, labels: Tensor, rule: Rule, overwrite_logits: bool) -> Tensor:
    """Of logits (N, V) and labels (N,) in CPU memory, in code that simply runs."""
    if logits.requires_grad and torch.is_grad_enabled():
        return _apply(operation, logits, labels, rule, overwrite_logits)
    return _run(operation, logits, labels, rule, None)


def _run(operation: str, logits: Tensor, labels: Tensor, rule: Rule, grad: Tensor | None) -> Tensor:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = torch.empty(logits.shape[:1] if rule[3] == "none" else (), dtype=wide)
    lse = torch.empty(logits.shape[:1], dtype=wide)
    _core.cross_entropy(operation, logits.detach(), labels, loss, lse, grad, *rule)
    return loss


class _Function(SingleLevelFunction):  # type: ignore[misc]  # torch's own is untyped
    @staticmethod
    def forward(ctx: Any, operation: str, logits: Tensor, labels: Tensor, rule: Rule, overwrite_logits: bool) -> Tensor:
        grad = logits.detach() if overwrite_logits else torch.empty_like(logits)
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
        if grad_loss.dim() == 0 and grad_loss == 1:
            return None, grad, None, None, None
        return None, grad * grad_loss.to(grad.dtype).reshape(-1, 1), None, None, None


_apply: Callable[..., Tensor] = _Function.apply
