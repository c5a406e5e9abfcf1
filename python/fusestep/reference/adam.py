"""Adam and AdamW, with AMSGrad.

Adam: Kingma and Ba 2014, algorithm 1. AMSGrad: Reddi et al. 2018, as torch has it (the running maximum is
taken over the uncorrected second moment). AdamW: Loshchilov and Hutter 2017, algorithm 2.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen


def adam(
    param: ArrayLike,
    grad: ArrayLike,
    exp_avg: ArrayLike,
    exp_avg_sq: ArrayLike,
    max_exp_avg_sq: ArrayLike | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> tuple[Array, Array, Array, Array | None]:
    """One step of Adam with L2 regularisation, as torch.optim.Adam.

        g = grad + weight_decay * param              (-grad when maximize)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        param = param - lr * m_hat / (sqrt(v_hat) + eps)
        m_hat = m / (1 - beta1**step),  v_hat = v / (1 - beta2**step)

    amsgrad: v_hat is taken from the largest v so far instead.

    Args:
        param, grad: arrays of one shape.
        exp_avg, exp_avg_sq: m and v before the step, zeros at first.
        max_exp_avg_sq: the largest v so far; needed with amsgrad only.
        step: the number of this step, from 1.

    Returns:
        (param, exp_avg, exp_avg_sq, max_exp_avg_sq); the last is None without amsgrad.
    """
    p, g = widen(param), widen(grad)
    if maximize:
        g = -g
    if weight_decay != 0:  # 0 times an infinite parameter is no gradient
        g = g + weight_decay * p
    update, m, v, largest_v = _adaptive_update(
        g, exp_avg, exp_avg_sq, max_exp_avg_sq, step=step, betas=betas, eps=eps, amsgrad=amsgrad
    )
    return p - lr * update, m, v, largest_v


def adamw(
    param: ArrayLike,
    grad: ArrayLike,
    exp_avg: ArrayLike,
    exp_avg_sq: ArrayLike,
    max_exp_avg_sq: ArrayLike | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    decay: Literal["lr", "independent"] = "lr",
) -> tuple[Array, Array, Array, Array | None]:
    """One step of AdamW: Adam, and the parameter decays on its own, untouched by the moments.

        decay="lr":           param = (1 - lr * weight_decay) * param - lr * m_hat / (sqrt(v_hat) + eps)
        decay="independent":  param = (1 - weight_decay) * param      - lr * m_hat / (sqrt(v_hat) + eps)

    "lr" is torch.optim.AdamW. "independent" is the form of the seed and of the paper (with its schedule
    multiplier folded into both rates): weight_decay is not scaled by the learning rate. The decay takes the
    parameter from before the step. Arguments and result as of `adam`.
    """
    p, g = widen(param), widen(grad)
    if maximize:
        g = -g
    rate = {"lr": lr * weight_decay, "independent": weight_decay}[decay]
    update, m, v, largest_v = _adaptive_update(
        g, exp_avg, exp_avg_sq, max_exp_avg_sq, step=step, betas=betas, eps=eps, amsgrad=amsgrad
    )
    return (1 - rate) * p - lr * update, m, v, largest_v


def _adaptive_update(
    g: Array,
    exp_avg: ArrayLike,
    exp_avg_sq: ArrayLike,
    max_exp_avg_sq: ArrayLike | None,
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
    amsgrad: bool,
) -> tuple[Array, Array, Array, Array | None]:
    """(m_hat / (sqrt(v_hat) + eps), m, v, largest v): what Adam and AdamW share."""
    beta1, beta2 = betas
    m = beta1 * widen(exp_avg) + (1 - beta1) * g
    v = beta2 * widen(exp_avg_sq) + (1 - beta2) * g**2
    largest_v = np.maximum(widen(max_exp_avg_sq), v) if amsgrad else None

    m_hat = m / (1 - beta1**step)
    v_hat = (v if largest_v is None else largest_v) / (1 - beta2**step)
    return m_hat / (np.sqrt(v_hat) + eps), m, v, largest_v
