"""A trial that leaves no trace."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_OWN = ("grad_norm", "skipped_steps")  # what fusestep.optim keeps outside of state_dict()


@contextlib.contextmanager
def preserved(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """At the end of the block everything is as it was: parameters, buffers, gradients, training modes, the optimizer's
    state and options, torch's random state. Inside there are no gradients at first.

    A copy of the model and of the optimizer's state is kept meanwhile.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    state = copy.deepcopy(optimizer.state_dict()) if optimizer is not None else None
    own: dict[str, Any] = {name: getattr(optimizer, name) for name in _OWN if hasattr(optimizer, name)}
    for p, _ in gradients:
        p.grad = None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            for p, gradient in gradients:
                p.grad = gradient
            for module, training in modes:
                module.training = training
            if optimizer is not None and state is not None:
                optimizer.load_state_dict(state)
            for name, value in own.items():
                setattr(optimizer, name, value)


def without_dropout(model: nn.Module) -> None:
    """Evaluation mode, but batch normalisation still normalises by the batch, as in training."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
