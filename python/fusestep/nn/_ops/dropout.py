"""The operators dropout and dropout_add. Nothing is saved for backward but the seed: the mask is made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core

from .library import Operator, SingleLevelFunction, are_many, new_like, runs_eagerly, seed_for_core, seed_tensor

Seed = int | Tensor


def dropout(operation: str, x: Tensor, p: float, seed: Seed, offset: int) -> Tensor:
    if not runs_eagerly((x, seed)) or x.is_meta or are_many(x):
        dropped: Tensor = torch.ops.fusestep.dropout(x, p, seed_tensor(seed), offset)
        return dropped
    rule = (p, seed_for_core(seed, x.device), offset)
    if x.requires_grad and torch.is_grad_enabled():
        return _apply(operation, x, None, rule, False)
    out = new_like(x)
    _core.dropout(operation, x, out, *rule)
    return out


def dropout_(operation: str, x: Tensor, p: float, seed: Seed, offset: int) -> Tensor:
    """In place."""
    if not runs_eagerly((x, seed)) or x.is_meta:
        return x.copy_(dropout(operation, x, p, seed, offset))
    rule = (p, seed_for_core(seed, x.device), offset)
    if x.requires_grad and torch.is_grad_enabled():
        return _apply(operation, x, None, rule, True)
    _core.dropout(operation, x, x, *rule)
    if not x.is_inference():
        increment_version(x)
    return x


def dropout_add(operation: str, x: Tensor, residual: Tensor, p: float, seed: Seed, offset: int) -> Tensor:
    if not runs_eagerly((x, residual, seed)) or x.is_meta:
        added: Tensor = torch.ops.fusestep.dropout_add(x, residual, p, seed_tensor(seed), offset)
        return added
    rule = (p, seed_for_core(seed, x.device), offset)
    if torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad):
        return _apply(operation, x, residual, rule, False)
    out = new_like(x, _sum_dtype(x, residual))
    _core.dropout_add(operation, x, residual, out, *rule)
    return out


def _sum_dtype(x: Tensor, residual: Tensor) -> torch.dtype:
    """Of x + residual, which has the layout of x."""
    return x.dtype if x.dtype == residual.dtype else torch.promote_types(x.dtype, residual.dtype)


class _Function(SingleLevelFunction):  # type: ignore[misc]  # torch's own is untyped
    @staticmethod
    def forward(
        ctx: Any, operation: str, x: Tensor, residual: Tensor | None, rule: tuple[float, Seed, int], inplace: bool
    ) -> Tensor:
        if residual is None:
            out = x if inplace else new_like(x)
            _core.dropout(operation, x, out, *rule)
        else:
            out = new_like(x, _sum_dtype(x, residual))
            _core.dropout_add(operation, x, residual, out, *rule)
            ctx.residual_dtype = residual.dtype
        if inplace:
            ctx.mark_dirty(x)
        ctx.operation, ctx.rule, ctx.x_dtype = operation, rule, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, x_needs, residual_needs, *_ = ctx.needs_input_grad
        grad_x = dropout(ctx.operation, grad, *ctx.rule).to(ctx.x_dtype) if x_needs else None
        return None, grad_x, grad.to(ctx.residual_dtype) if residual_needs else None, None, None


_apply: Callable[..., Tensor] = _Function.apply


# What follows is for torch.ops: there, a seed is a tensor.


def _op_dropout(x: Tensor, p: float, seed: Tensor, offset: int) -> Tensor:
    out = new_like(x)
    _core.dropout("dropout", x, out, p, seed_for_core(seed, x.device), offset)
    return out


def _op_dropout_add(x: Tensor, residual: Tensor, p: float, seed: Tensor, offset: int) -> Tensor:
    out = new_like(x, _sum_dtype(x, residual))
    _core.dropout_add("dropout_add", x, residual, out, p, seed_for_core(seed, x.device), offset)
    return out


def _op_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.p, seed, ctx.offset = inputs
    ctx.dtypes = [x.dtype for x in tensors]
    ctx.save_for_backward(seed)
    ctx.save_for_forward(seed)


def _op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    return torch.ops.fusestep.dropout(grad, ctx.p, seed, ctx.offset).to(ctx.dtypes[0]), None, None, None


def _op_add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, *others = _op_backward(ctx, grad)
    return grad_x, grad.to(ctx.dtypes[1]), *others


def _op_jvp(ctx: Any, tangent: Tensor, *_: object) -> Tensor:
    """Dropout is linear: the same mask on the tangent."""
    (seed,) = ctx.saved_tensors
    dropped: Tensor = torch.ops.fusestep.dropout(tangent, ctx.p, seed, ctx.offset)
    return dropped


def _op_add_jvp(ctx: Any, tangent: Tensor, residual_tangent: Tensor, *_: object) -> Tensor:
    (seed,) = ctx.saved_tensors
    added: Tensor = torch.ops.fusestep.dropout_add(tangent, residual_tangent, ctx.p, seed, ctx.offset)
    return added


Operator(
    "dropout(Tensor x, float p, Tensor seed, SymInt offset) -> Tensor",
    _op_dropout,
    lambda x, p, seed, offset: torch.empty_like(x),
    _op_setup_context,
    _op_backward,
    _op_jvp,
).register()
Operator(
    "dropout_add(Tensor x, Tensor residual, float p, Tensor seed, SymInt offset) -> Tensor",
    _op_dropout_add,
    lambda x, residual, p, seed, offset: torch.empty_like(x, dtype=_sum_dtype(x, residual)),
    _op_setup_context,
    _op_add_backward,
    _op_add_jvp,
).register()
