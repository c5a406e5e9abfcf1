"""SGD, with torch.optim.SGD's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import FusedOptimizer, States
from .options import Extras

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGD(FusedOptimizer):
    """Gradient descent with momentum (Sutskever et al., ICML 2013): a drop-in for torch.optim.SGD.

    With g the clipped gradient plus ``weight_decay`` times the parameter p, and mu the momentum::

        b = mu * b + (1 - dampening) * g           form="torch"; b = g at a parameter's first step
        p = p - lr * b                             (nesterov: g + mu * b for b)

        b = mu * b - lr * (1 - dampening) * g      form="classical", from b = 0: the rate enters the velocity
        p = p + b                                  (nesterov: mu * b - lr * g for b)

    The forms differ once lr changes.

    State of a parameter: ``momentum_buffer`` (shape and dtype of the parameter) once a step with momentum was
    applied; the same key as torch.optim.SGD's. Without momentum there is no state.

    Args:
        params: see `FusedOptimizer`.
        lr: learning rate, >= 0; a number or a tensor of one element. Default: 1e-3.
        momentum: >= 0. Default: 0.
        dampening: of the gradient in the momentum. Default: 0.
        weight_decay: >= 0, added to the gradient as an L2 penalty. Default: 0.
        nesterov: Nesterov's momentum; needs a momentum, and no dampening. Default: False.
        maximize: follow the gradient upwards. Default: False.
        foreach, fused: accepted and kept for torch's state_dict; the step is always fused.
        capturable: keep step counts and decisions on the CUDA device, as `FusedOptimizer` says; torch has no such
            flag here. The same in all groups. Default: False.
        differentiable: refused unless False.
        form: "torch" or "classical", as above. Default: "torch".
        **extras: see `Clipping` and `Precision`.

    Raises:
        TypeError, ValueError: see `FusedOptimizer`.
    """

    _name = "sgd"
    _states: ClassVar[dict[str, str | None]] = {"momentum_buffer": "momentum"}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        form: Literal["torch", "classical"] = "torch",
        **extras: Unpack[Extras],
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "form": form,
        }
        if capturable:  # no key of torch's
            defaults["capturable"] = True
        super().__init__(params, defaults, extras)

    def _collect(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[Mapping[str, Any]],
        fresh: list[tuple[Tensor, dict[str, Tensor]]],
    ) -> States:
        if group.get("capturable") or group.get("rounding") == "stochastic":
            return self._collect_counted(group, params, states, fresh)
        companions = self._companions(group, params, states, fresh)
        if not group["momentum"]:
            return (None,), 1, companions
        # torch counts no steps here: a buffer that is absent (None in some checkpoints) marks the first one.
        steps = [1 if state.get("momentum_buffer") is None else 2 for state in states]
        if 1 in steps:
            states = list(states)
            for i, p in enumerate(params):
                if steps[i] == 1:
                    new = self._new_moments(p, group)
                    fresh.append((p, new))
                    states[i] = {**states[i], **new}
        return self._columns(group, params, states), steps, companions

    def _collect_counted(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[Mapping[str, Any]],
        fresh: list[tuple[Tensor, dict[str, Tensor]]],
    ) -> States:
        """The same where steps must be counted, in a state of our own.

        The device has to see which one is the first; stochastic rounding draws by the number of the step.
        """
        complete: list[Mapping[str, Any]] = []
        steps = []
        for p, state in zip(params, states, strict=True):
            new: dict[str, Tensor] = {}
            buffer, step = state.get("momentum_buffer"), state.get("step")
            if step is None:
                step = new["step"] = self._new_state("step", p, group)
                if buffer is not None:
                    step.fill_(1.0)
            if buffer is None and group["momentum"]:
                new |= self._new_moments(p, group)
            if new:
                fresh.append((p, new))
            complete.append({**state, **new})
            steps.append(step)
        companions = self._companions(group, params, states, fresh)
        return self._columns(group, params, complete), steps, companions
