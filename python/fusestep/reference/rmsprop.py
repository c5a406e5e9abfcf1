"""RMSProp: Hinton 2012, lecture 6e; centered as in Graves 2013; with torch's momentum."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen


def rmsprop(
    param: ArrayLike,
    grad: ArrayLike,
    square_avg: ArrayLike,
    momentum_buffer: ArrayLike | None = None,
    grad_avg: ArrayLike | None = None,
    *,
    step: int,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> tuple[Array, Array, Array | None, Array | None]:
    """One step of RMSProp, as torch.optim.RMSprop and the seed (eps outside the root).

        g = grad + weight_decay * param              (-grad when maximize)
        s = alpha * s + (1 - alpha) * g**2
        plain:     param = param - lr * g / (sqrt(s) + eps)
        momentum:  b = momentum * b + g / (sqrt(s) + eps),  param = param - lr * b
        centered:  a = alpha * a + (1 - alpha) * g, and s - a**2 (a variance) stands in the place of s

    The variance is never negative but may come out so by rounding; it is then taken as 0, where torch gives
    NaN.

    Args:
        param, grad: arrays of one shape.
        square_avg: s before the step, zeros at first.
        momentum_buffer: b, zeros at first; needed when momentum > 0.
        grad_avg: a, zeros at first; needed when centered.
        step: the number of this step; RMSProp corrects no bias and does not use it.

    Returns:
        (param, square_avg, momentum_buffer, grad_avg); those not in use are None.
    """
    p, g = widen(param), widen(grad)
    if maximize:
        g = -g
    if weight_decay != 0:  # 0 times an infinite parameter is no gradient
        g = g + weight_decay * p

    s = alpha * widen(square_avg) + (1 - alpha) * g**2
    a = alpha * widen(grad_avg) + (1 - alpha) * g if centered else None
    mean_square = s if a is None else np.maximum(s - a**2, 0)
    update = g / (np.sqrt(mean_square) + eps)
    if momentum == 0:
        return p - lr * update, s, None, a

    b = momentum * widen(momentum_buffer) + update
    return p - lr * b, s, b, a
