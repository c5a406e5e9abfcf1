"""Cross-entropy of a linear layer's outputs, which are made, used and dropped some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross_entropy import Rule, loss_and_gradient
from .library import SingleLevelFunction, refuse_double_backward

# Logits that are in memory at a time: enough rows for a matrix product at full speed, also of large vocabularies.
LOGITS_AT_ONCE = 2**24
LEAST_ROWS = 64


class _Function(SingleLevelFunction):  # type: ignore[misc]  # torch's own is untyped
    @staticmethod
    def forward(
        ctx: Any, operation: str, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rule: Rule
    ) -> Tensor:
        """x (N, E), weight (V, E), bias (V,), labels (N,): the sum or mean of the losses, and all gradients of it."""
        ignore_index, label_smoothing, z_loss, reduction = rule
        each: Rule = (ignore_index, label_smoothing, z_loss, "sum")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        of_x, of_weight, of_bias = ctx.needs_input_grad[1:4]
        grad_x = torch.empty_like(x) if of_x else None
        # The sums over all rows are in the wider type: 16 bits would lose the later chunks.
        grad_weight = torch.zeros_like(weight, dtype=wide) if of_weight else None
        grad_bias = torch.zeros(weight.shape[0], dtype=wide, device=x.device) if of_bias else None
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        rows = max(LEAST_ROWS, LOGITS_AT_ONCE // weight.shape[0])
        for begin in range(0, x.shape[0], rows):
            part = slice(begin, begin + rows)
            logits = F.linear(x[part], weight, bias)  # (rows, V)
            loss, grad = loss_and_gradient(operation, logits, labels[part], each, of_x or of_weight or of_bias)
            total += loss
            if grad_x is not None:
                grad_x[part] = grad @ weight
            if grad_weight is not None:
                _add_product(grad_weight, grad.t(), x[part])
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=wide)
        counted = (labels != ignore_index).sum() if reduction == "mean" else total.new_ones(())
        share = 1 / counted.clamp(min=1).to(wide)
        grads = [g if g is None else g.mul_(share.to(g.dtype)) for g in (grad_x, grad_weight, grad_bias)]
        tensors = (x, weight, bias)
        ctx.save_for_backward(
            *(g if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, tensors, strict=True))
        )
        return (total / counted).to(wide)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            refuse_double_backward("linear_cross_entropy")()
        grads = ctx.saved_tensors
        if not (grad_loss.device.type == "cpu" and grad_loss == 1):  # asking a device would wait for it
            grads = [None if grad is None else grad * grad_loss.to(grad.dtype) for grad in grads]
        return None, *grads, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a second array of its size where the dtypes allow it."""
    if total.dtype == left.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right.to(left.dtype)


linear_cross_entropy: Callable[..., Tensor] = _Function.apply
