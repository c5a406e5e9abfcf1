"""One attempt to fit one batch, which can be made again from the same start under other conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusestep.diagnostics.preserve import preserved, without_dropout


@dataclass(frozen=True)
class Attempt:
    """What is trained on what, and when it has succeeded."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor]
    loss_fn: Callable[[Any, Tensor], Tensor]
    steps: int  # updates at most
    target: float  # the loss to reach

    def losses(
        self, *, rate_factor: float = 1.0, prepare: Callable[[nn.Module], None] | None = None
    ) -> tuple[float, ...]:
        """The loss before each update and after the last one. Model and optimizer are left as found.

        rate_factor: times the rates that the optimizer has.
        prepare: is given the model before it begins.

        It ends early at the target, and where the loss is not finite.
        """
        inputs, targets = self.batch
        losses: list[float] = []
        with preserved(self.model, self.optimizer):
            without_dropout(self.model)
            if prepare is not None:
                prepare(self.model)
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * rate_factor
            while True:
                self.optimizer.zero_grad()
                loss = self.loss_fn(self.model(inputs), targets)
                losses.append(float(loss.detach()))
                if len(losses) > self.steps or not math.isfinite(losses[-1]) or self.reached(losses):
                    return tuple(losses)
                if loss.requires_grad:  # a loss that depends on no parameter is a culprit to be found
                    loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()

    def reached(self, losses: list[float] | tuple[float, ...]) -> bool:
        return losses[-1] <= self.target
