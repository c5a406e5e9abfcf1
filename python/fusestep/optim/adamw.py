"""AdamW, with torch.optim.AdamW's arguments."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adam import Adam
from .base import FusedOptimizer
from .options import Extras

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), for torch.optim.AdamW.

    The update is `Adam`'s without the penalty in the gradient; before it the parameter p decays::

        p = (1 - lr * weight_decay) * p            decay="lr", torch's form
        p = (1 - weight_decay) * p                 decay="independent": schedules of lr do not touch it

    State of a parameter: as for `Adam`.

    Args:
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as for `Adam`.
        weight_decay: >= 0. Default: 1e-2.
        decay: "lr" or "independent", as above; it may differ between groups. Default: "lr".
        **extras: see `Clipping` and `Precision`.

    Raises:
        TypeError, ValueError: see `FusedOptimizer`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decay: Literal["lr", "independent"] = "lr",
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
            "decoupled_weight_decay": True,
            "decay": decay,
        }
        # Not Adam's own, which has no place for `decay`.
        FusedOptimizer.__init__(self, params, defaults, extras)

    def _first_groups(self) -> list[dict[str, Any]]:
        # An independent decay does not stand still where the rate does.
        if self._only_makes_state():
            return [{**group, "weight_decay": 0.0} for group in self.param_groups]
        return super()._first_groups()

    def _only_makes_state(self) -> bool:
        """Whether this is the step by which torch.distributed.checkpoint makes the state that is to be saved or loaded.

        It is of zero gradients at a zero rate, and must change no parameter.
        """
        if all(group.get("decay") != "independent" for group in self.param_groups):
            return False
        if any(float(group["lr"]) != 0.0 for group in self.param_groups):
            return False
        from fusestep.nn.utils import get_total_norm  # here: it brings all of fusestep.nn with it

        params = chain.from_iterable(group["params"] for group in self.param_groups)
        return float(get_total_norm(p.grad for p in params if p.grad is not None)) == 0.0
