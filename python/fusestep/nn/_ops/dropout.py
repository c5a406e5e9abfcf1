"""The operators dropout and dropout_add. Nothing is saved for backward but the seed: the mask is made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core

from .library import register, runs_eagerly, seed_number, seed_tensor

Seed = int | Tensor


def dropout(operation: str, x: Tensor, p: float, seed: Seed, offset: int) -> Tensor:
    if not runs_eagerly((x,)):
        dropped: Tensor = torch.ops.fusestep.dropout(x, p, seed_tensor(seed), offset)
        return dropped
    rule = (p, seed_number(seed), offset)
    if x.requires_grad and torch.is_grad_enabled():
        return _apply(operation, x, None, rule, False)
    out = torch.empty_like(x)
    _core.dropout(operation, x, out, *rule)
    return out


def dropout_(operation: str, x: Tensor, p: float, seed: Seed, offset: int) -> Tensor:
    """In place."""
    if not runs_eagerly((x,)):
        return x.copy_(dropout(operation, x, p, seed, offset))
    rule = (p, seed_number(seed), offset)
    if x.requires_grad and torch.is_grad_enabled():
        return _apply(operation, x, None, rule, True)
    _core.dropout(operation, x, x, *rule)
    if not x.is_inference():
        increment_version(x)
    return x


def dropout_add(operation: str, x: Tensor, residual: Tensor, p: float, seed: Seed, offset: int) -> Tensor:
    if not runs_eagerly((x, residual)):
        added: Tensor = torch.ops.fusestep.dropout_add(x, residual, p, seed_tensor(seed), offset)
        return added
    rule = (p, seed_number(seed), offset)
    if torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad):
        return _apply(operation, x, residual, rule, False)
    out = torch.empty_like(x)
    _core.dropout_add(operation, x, residual, out, *rule)
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operation: str, x: Tensor, residual: Tensor | None, rule: tuple[float, int, int], inplace: bool
    ) -> Tensor:
        out = x if inplace else torch.empty_like(x)
        if residual is None:
            _core.dropout(operation, x, out, *rule)
        else:
            _core.dropout_add(operation, x, residual, out, *rule)
        if inplace:
            ctx.mark_dirty(x)
        ctx.operation, ctx.rule = operation, rule
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = dropout(ctx.operation, grad, *ctx.rule) if ctx.needs_input_grad[1] else None
        return None, grad_x, grad if ctx.needs_input_grad[2] else None, None, None


_apply: Callable[..., Tensor] = _Function.apply


def _op_dropout(x: Tensor, p: float, seed: Tensor, offset: int) -> Tensor:
    out = torch.empty_like(x)
    _core.dropout("dropout", x, out, p, seed_number(seed), offset)
    return out


def _op_dropout_add(x: Tensor, residual: Tensor, p: float, seed: Tensor, offset: int) -> Tensor:
    out = torch.empty_like(x)
    _core.dropout_add("dropout_add", x, residual, out, p, seed_number(seed), offset)
    return out


def _op_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *_, ctx.p, seed, ctx.offset = inputs
    ctx.save_for_backward(seed)


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dropped = torch.ops.fusestep.dropout(grad, ctx.p, *ctx.saved_tensors, ctx.offset)
    return dropped, None, None, None


def _op_add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, *others = _op_backward(ctx, grad)
    return grad_x, grad, *others


register(
    "dropout(Tensor x, float p, Tensor seed, SymInt offset) -> Tensor",
    _op_dropout,
    lambda x, p, seed, offset: torch.empty_like(x),
    _op_setup_context,
    _op_backward,
)
register(
    "dropout_add(Tensor x, Tensor residual, float p, Tensor seed, SymInt offset) -> Tensor",
    _op_dropout_add,
    lambda x, residual, p, seed, offset: torch.empty_like(x),
    _op_setup_context,
    _op_add_backward,
)
