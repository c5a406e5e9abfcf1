"""RMSprop, with torch.optim.RMSprop's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import FusedOptimizer
from .options import Extras

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RMSprop(FusedOptimizer):
    """RMSProp (Hinton, lecture 6 of his course on neural networks, 2012), a drop-in for torch.optim.RMSprop.

    With g the clipped gradient plus ``weight_decay`` times the parameter p::

        s = alpha * s + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g            (centered; then s - a * a stands for s below)
        b = momentum * b + g / (sqrt(s) + eps)     (without momentum b is just the quotient)
        p = p - lr * b

    State of a parameter: ``step`` (0-dim float32), ``square_avg``, with momentum ``momentum_buffer``, and if
    centered ``grad_avg`` (shape and dtype of the parameter); the same keys as torch.optim.RMSprop's.

    Args:
        params: see `FusedOptimizer`.
        lr: learning rate, >= 0; a number or a tensor of one element. Default: 1e-2.
        alpha: decay rate of the averages, in [0, 1). Default: 0.99.
        eps: added to the root, >= 0. Default: 1e-8.
        weight_decay: >= 0, added to the gradient as an L2 penalty. Default: 0.
        momentum: >= 0. Default: 0.
        centered: divide by the standard deviation of the gradient in place of its root mean square (Graves,
            arXiv:1308.0850). Default: False.
        foreach: accepted and kept for torch's state_dict; the step is always fused.
        maximize: follow the gradient upwards. Default: False.
        capturable: keep step counts and decisions on the CUDA device, as `FusedOptimizer` says; the same in all
            groups. Default: False.
        differentiable: refused unless False.
        **extras: see `Clipping` and `Precision`.

    Raises:
        TypeError, ValueError: see `FusedOptimizer`.
    """

    _name = "rmsprop"
    _states: ClassVar[dict[str, str | None]] = {
        "square_avg": None,
        "momentum_buffer": "momentum",
        "grad_avg": "centered",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, extras)
