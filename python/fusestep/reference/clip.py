"""Norms and clipping of gradients: by the norm over all of them (Pascanu et al. 2013) and by value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen


def grad_norm(grads: Sequence[ArrayLike], norm_type: float = 2.0) -> float:
    """The norm of all gradients together, as of one long vector.

    Args:
        grads: list of arrays of any shapes.
        norm_type: 1, 2 or inf: sum |g|, sqrt(sum g**2), max |g|.

    Returns:
        A float; 0.0 for no elements; NaN or inf when an element is.
    """
    peak = _largest(grads)
    if norm_type == math.inf or peak == 0 or not math.isfinite(peak):
        return peak
    if norm_type == 1:
        return float(sum(np.sum(np.abs(widen(grad))) for grad in grads))
    # The squares are of numbers up to 1: none overflows, and none that matters underflows.
    return peak * math.sqrt(sum(np.sum((widen(grad) / peak) ** 2) for grad in grads))


def _largest(grads: Sequence[ArrayLike]) -> float:
    # np.max, unlike Python's max, hands on a NaN wherever it stands.
    return float(np.max([np.max(np.abs(widen(grad)), initial=0.0) for grad in grads], initial=0.0))


def clip_coefficient(norm: float, max_norm: float, clip_factor: float | None = None) -> float:
    """The number that every gradient is multiplied by.

        clip_factor None (torch.nn.utils.clip_grad_norm_):  min(1, max_norm / (norm + 1e-6))
        clip_factor given (the seed's form):                clip_factor where norm > max_norm, else 1

    A NaN norm gives NaN in either form: a step that is not to be skipped shows it everywhere, as in torch.
    """
    if math.isnan(norm):
        return math.nan
    if clip_factor is not None:
        return clip_factor if norm > max_norm else 1.0
    return min(1.0, max_norm / (norm + 1e-6))


def clip_by_norm(
    grads: Sequence[ArrayLike], max_norm: float, norm_type: float = 2.0, clip_factor: float | None = None
) -> tuple[list[Array], float]:
    """(gradients times `clip_coefficient` of their norm, the norm before clipping)."""
    norm = grad_norm(grads, norm_type)
    coefficient = clip_coefficient(norm, max_norm, clip_factor)
    return [widen(grad) * coefficient for grad in grads], norm


def clip_by_value(grads: Sequence[ArrayLike], max_value: float) -> list[Array]:
    """Every element limited to [-max_value, max_value]; NaN stays NaN (torch.nn.utils.clip_grad_value_)."""
    return [np.clip(widen(grad), -max_value, max_value) for grad in grads]
