"""ADADELTA: Zeiler 2012, with torch's rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen


def adadelta(
    param: ArrayLike,
    grad: ArrayLike,
    square_avg: ArrayLike,
    acc_delta: ArrayLike,
    *,
    step: int,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, Array, Array]:
    """One step of ADADELTA, as torch.optim.Adadelta; returns (param, square_avg, acc_delta)."""
    p, g = widen(param), widen(grad)
    if maximize:
        g = -g
    if weight_decay != 0:
        g = g + weight_decay * p
    square_avg = rho * widen(square_avg) + (1 - rho) * g**2
    delta = np.sqrt(widen(acc_delta) + eps) / np.sqrt(square_avg + eps) * g
    return p - lr * delta, square_avg, rho * widen(acc_delta) + (1 - rho) * delta**2
