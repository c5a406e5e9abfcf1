"""Adam, with torch.optim.Adam's arguments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusestep._refusal import refuse

from .base import FusedOptimizer
from .options import Extras

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adam(FusedOptimizer):
    """Adam (Kingma and Ba, arXiv:1412.6980), a drop-in for torch.optim.Adam.

    With g the clipped gradient plus ``weight_decay`` times the parameter p::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g        (amsgrad: below, the largest v so far)
        p = p - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

    State of a parameter: ``step`` (0-dim float32), ``exp_avg``, ``exp_avg_sq`` and, with amsgrad,
    ``max_exp_avg_sq`` (shape and dtype of the parameter); the same keys as torch.optim.Adam's.

    Args:
        params: see `FusedOptimizer`.
        lr: learning rate, >= 0; a number or a tensor of one element. Default: 1e-3.
        betas: decay rates of the two moments, in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, >= 0. Default: 1e-8.
        weight_decay: >= 0, added to the gradient as an L2 penalty. Default: 0.
        amsgrad: divide by the largest second moment so far (Reddi et al., arXiv:1904.09237). Default: False.
        foreach, fused: accepted and kept for torch's state_dict; the step is always fused.
        maximize: follow the gradient upwards. Default: False.
        capturable: keep step counts and decisions on the CUDA device, as `FusedOptimizer` says; the same in all
            groups. Default: False.
        differentiable: refused unless False.
        decoupled_weight_decay: decay the parameter and not the gradient, as `AdamW` does; the same in all
            groups. Default: False.
        **extras: see `Clipping` and `Precision`.

    Raises:
        TypeError, ValueError: see `FusedOptimizer`.
    """

    _name = "adam"
    _states: ClassVar[dict[str, str | None]] = {
        "exp_avg": None,
        "exp_avg_sq": None,
        "max_exp_avg_sq": "amsgrad",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, extras)

    def _kernel(self, groups: Iterable[dict[str, Any]]) -> str:
        # torch keeps the choice between Adam and AdamW in the group; here the one call has one kernel.
        kinds = {bool(group["decoupled_weight_decay"]) for group in groups}
        if len(kinds) > 1:
            refuse(
                f"{type(self).__name__}.step",
                "decoupled_weight_decay",
                "the same in all parameter groups",
                "both True and False",
                "Use one optimizer for each.",
            )
        return "adamw" if kinds == {True} else "adam"
