"""AdaGrad: Duchi et al. 2011, the diagonal form; with torch's decay of the learning rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen


def adagrad(
    param: ArrayLike,
    grad: ArrayLike,
    state_sum: ArrayLike,
    *,
    step: int,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> tuple[Array, Array]:
    """One step of AdaGrad, as torch.optim.Adagrad; with lr_decay=0 the seed's formula.

        g = grad + weight_decay * param              (-grad when maximize)
        s = s + g**2
        param = param - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        param, grad: arrays of one shape.
        state_sum: s before the step; at first filled with the initial accumulator value, 0 in the seed.
        step: the number of this step, from 1.

    Returns:
        (param, state_sum)
    """
    p, g = widen(param), widen(grad)
    if maximize:
        g = -g
    if weight_decay != 0:  # 0 times an infinite parameter is no gradient
        g = g + weight_decay * p

    s = widen(state_sum) + g**2
    rate = lr / (1 + (step - 1) * lr_decay)
    return p - rate * g / (np.sqrt(s) + eps), s
