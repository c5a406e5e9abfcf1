"""Adagrad, with torch.optim.Adagrad's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fusestep._refusal import check_number

from .base import FusedOptimizer
from .options import Extras

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adagrad(FusedOptimizer):
    """AdaGrad (Duchi, Hazan and Singer, JMLR 12, 2011): a drop-in for torch.optim.Adagrad.

    With g the clipped gradient plus ``weight_decay`` times the parameter p::

        s = s + g * g                              (s begins as initial_accumulator_value)
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    State of a parameter: ``step`` (0-dim float32) and ``sum`` (shape and dtype of the parameter), there from
    the construction on; the same keys as torch.optim.Adagrad's.

    Args:
        params: see `FusedOptimizer`.
        lr: learning rate, >= 0; a number or a tensor of one element. Default: 1e-2.
        lr_decay: decay of the learning rate with the number of steps, >= 0. Default: 0.
        weight_decay: >= 0, added to the gradient as an L2 penalty. Default: 0.
        initial_accumulator_value: >= 0; a group's own value counts (torch takes the first one everywhere).
            Default: 0.
        eps: added to the root, >= 0. Default: 1e-10.
        foreach, fused: accepted and kept for torch's state_dict; the step is always fused.
        maximize: follow the gradient upwards. Default: False.
        capturable: keep step counts and decisions on the CUDA device, as `FusedOptimizer` says; torch has no such
            flag here. The same in all groups. Default: False.
        differentiable: refused unless False.
        **extras: see `Clipping` and `Precision`.

    Raises:
        TypeError, ValueError: see `FusedOptimizer`.
    """

    _name = "adagrad"
    _states: ClassVar[dict[str, str | None]] = {"sum": None}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        **extras: Unpack[Extras],
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        if capturable:  # no key of torch's
            defaults["capturable"] = True
        super().__init__(params, defaults, extras)
        # torch.optim.Adagrad alone has its state before the first step; a state_dict shows it.
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {key: self._new_state(key, p, group) for key in self._needed(group, p)}

    def share_memory(self) -> None:
        """Move the accumulators into shared memory, as ``torch.optim.Adagrad.share_memory`` does."""
        for state in self.state.values():
            for key in state.keys() - {"step"}:
                state[key].share_memory_()

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        # The kernel knows nothing of how its accumulators began.
        name = "initial_accumulator_value"
        check_number(type(self).__name__, name, options[name], 0.0)

    def _new_state(self, key: str, param: Tensor, group: dict[str, Any]) -> Tensor:
        new = super()._new_state(key, param, group)
        if key in ("sum", "sum_absmax"):
            # 255: the code of 1, the whole of the scale.
            new.fill_(255 if new.dtype == torch.uint8 else group["initial_accumulator_value"])
        return new
