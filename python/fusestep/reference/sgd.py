"""Stochastic gradient descent with momentum (Polyak 1964) and Nesterov's variant (Sutskever et al. 2013)."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from ._widen import Array, widen


def sgd(
    param: ArrayLike,
    grad: ArrayLike,
    momentum_buffer: ArrayLike | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    form: Literal["torch", "classical"] = "torch",
) -> tuple[Array, Array | None]:
    """One step of SGD. Without momentum: param = param - lr * g, with g = grad + weight_decay * param.

        form="torch" (torch.optim.SGD): the buffer holds gradients, the rate is applied to it afterwards.
            b = momentum * b + (1 - dampening) * g;  at step 1 b = g, not dampened
            param = param - lr * b                   (nesterov: param - lr * (g + momentum * b))

        form="classical" (the seed, Sutskever et al. 2013): the buffer is the velocity, the rate is in it.
            b = momentum * b - lr * (1 - dampening) * g
            param = param + b                        (nesterov: param + momentum * b - lr * g)

    The forms differ once the learning rate changes: a classical velocity keeps the rates its gradients came
    with.

    Args:
        param, grad: arrays of one shape; -grad is used when maximize.
        momentum_buffer: b before the step, zeros at first; needed when momentum > 0.
        step: the number of this step, from 1.

    Returns:
        (param, momentum_buffer); the buffer is None without momentum.
    """
    p, g = widen(param), widen(grad)
    if maximize:
        g = -g
    if weight_decay != 0:  # 0 times an infinite parameter is no gradient
        g = g + weight_decay * p
    if momentum == 0:
        return p - lr * g, None

    b = widen(momentum_buffer)
    if form == "classical":
        b = momentum * b - lr * (1 - dampening) * g
        return p + (momentum * b - lr * g if nesterov else b), b

    b = g if step == 1 else momentum * b + (1 - dampening) * g
    return p - lr * (g + momentum * b if nesterov else b), b
