"""Adadelta, with torch.optim.Adadelta's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import FusedOptimizer
from .options import Extras

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adadelta(FusedOptimizer):
    """ADADELTA (Zeiler, arXiv:1212.5701): a drop-in for torch.optim.Adadelta."""

    _name = "adadelta"
    _states: ClassVar[dict[str, str | None]] = {"square_avg": None, "acc_delta": None}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults, extras)
