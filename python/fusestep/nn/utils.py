"""Clipping of gradients on its own, with the signatures of torch.nn.utils.

An optimizer of `fusestep.optim` clips within its step (``max_grad_norm=``) and is faster so; these are for
other optimizers, and for looking at the norm. Norms are summed in float64 in a fixed order: the same bits
for any number of threads. (torch's float32 sum on the CPU was seen 1e-2 off at 1e8 elements.) DTensors count with all
their elements, on whatever process these are: see docs/sharded.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import reduce
from types import GeneratorType

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core, _mesh
from fusestep._refusal import refuse

__all__ = ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients in place so that their common norm is at most `max_norm`.

    They are multiplied by ``min(1, max_norm / (norm + 1e-6))``: Pascanu et al., arXiv:1211.5063, and torch.

    Args:
        parameters: a tensor, or several; those whose ``grad`` is None are left out. Gradients of any shape,
            in float32, float64, bfloat16 or float16.
        max_norm: > 0; inf only measures.
        norm_type: 1, 2 or inf (also "inf"). Default: 2.
        error_if_nonfinite: raise, and leave the gradients alone, where the norm is infinite or NaN.
            Default: False.
        foreach: accepted for torch's sake; the pass is always fused.

    Returns:
        The norm before clipping: 0-dim, of the gradients' dtype (the wider one where they differ) and on their
        device. On CUDA nobody waits for it, unless `error_if_nonfinite`.

    Raises:
        TypeError: gradients of another dtype, layout or device.
        ValueError: another norm, or a `max_norm` out of range.
        RuntimeError: the norm is not finite, with `error_if_nonfinite`; processes of one mesh that have gradients of
            different parameters.
    """
    listed = _listed(parameters)
    grads = _grads(listed)
    clipping = {
        "max_norm": max_norm,
        "norm_type": float(norm_type),
        "on_nonfinite": "raise" if error_if_nonfinite else "propagate",
    }
    whole = _whole("clip_grad_norm_", listed, grads, norm_type)
    written = grads if whole is None else _mesh.parts(grads)
    if _stays_on_device(grads, error_if_nonfinite):
        out = torch.empty((), dtype=torch.float64, device=grads[0].device)
        _core.clip_grad_norm_("clip_grad_norm_", written, clipping, out, None if whole is None else whole.totals)
        result = out.to(_dtype(grads))
    else:
        totals = None if whole is None else whole.totals_on_host("clip_grad_norm_")
        result = _scalar(_core.clip_grad_norm_("clip_grad_norm_", written, clipping, None, totals), grads)
    _count_change(grads, written)
    return result


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clamp every element of the gradients, in place, to [-clip_value, clip_value]; NaN stays NaN.

    Args:
        parameters: as for `clip_grad_norm_`.
        clip_value: >= 0.
        foreach: accepted for torch's sake; the pass is always fused.

    Raises:
        TypeError: gradients of another dtype, layout or device.
        ValueError: a `clip_value` out of range.
    """
    grads = _grads(_listed(parameters))
    for i, g in enumerate(grads if _mesh.any_spread(grads) else ()):
        if _mesh.without_partial(g) is not g:
            refuse("clip_grad_value_", f"grads[{i}]", "shards or replicas", "a partial sum", "Redistribute it first.")
    written = _mesh.parts(grads)
    _core.clip_grad_value_("clip_grad_value_", written, float(clip_value))
    _count_change(grads, written)


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all elements of `tensors`, taken as one vector.

    Args:
        tensors: the tensors themselves (not parameters whose gradients are meant), one or several.
        norm_type, error_if_nonfinite, foreach: as for `clip_grad_norm_`.

    Returns:
        The norm: 0-dim, of the tensors' dtype (the wider one where they differ).

    Raises:
        TypeError, ValueError, RuntimeError: as for `clip_grad_norm_`.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    whole = _whole("get_total_norm", tensors, tensors, norm_type)
    measured = tensors if whole is None else _mesh.parts(tensors)
    if _stays_on_device(tensors, error_if_nonfinite):
        out = torch.empty((), dtype=torch.float64, device=tensors[0].device)
        _core.grad_norm("get_total_norm", measured, float(norm_type), out, None if whole is None else whole.totals)
        return out.to(_dtype(tensors))
    totals = None if whole is None else whole.totals_on_host("get_total_norm")
    norm = _core.grad_norm("get_total_norm", measured, float(norm_type), None, totals)
    if error_if_nonfinite and not abs(norm) < float("inf"):
        refuse("get_total_norm", "tensors", "a finite norm", str(norm), error=RuntimeError)
    return _scalar(norm, tensors)


def _listed(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        return [tensors]
    listed = list(tensors)
    if not listed and isinstance(tensors, GeneratorType):
        # Mostly model.parameters() kept in a variable and used a second time.
        warnings.warn("`parameters` is an empty generator: no gradient is clipped", stacklevel=3)
    return listed


def _grads(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _whole(operation: str, owners: list[Tensor], tensors: list[Tensor], norm_type: float) -> _mesh.Whole | None:
    """What makes the norm of `tensors` over all processes; None where none of the `owners` is a DTensor."""
    if not _mesh.any_spread(owners):
        return None
    summed = [_mesh.without_partial(t) for t in tensors]
    return _mesh.gather(operation, summed, _mesh.meshes_of(owners), float(norm_type))


def _count_change(tensors: list[Tensor], written: list[Tensor]) -> None:
    """For autograd: also of the DTensors whose local parts were written."""
    increment_version(tensors)
    if _mesh.any_spread(tensors):
        increment_version(written)


def _stays_on_device(tensors: list[Tensor], error_if_nonfinite: bool) -> bool:
    """Whether the norm need not come to the host, which would wait for it."""
    return bool(tensors) and getattr(tensors[0], "is_cuda", False) and not error_if_nonfinite


def _dtype(like: list[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, {t.dtype for t in like}) if like else torch.float32


def _scalar(value: float, like: list[Tensor]) -> Tensor:
    return torch.tensor(value, dtype=_dtype(like), device=like[0].device if like else None)
