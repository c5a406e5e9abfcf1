"""Steps of functions on tensors: the forward pass alone, or with the gradients of the inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor]
MakeStep = Callable[[Function], Callable[[], object]]


def forward(*inputs: Tensor) -> MakeStep:
    """Makes a step that calls a function on the inputs."""

    def make(function: Function) -> Callable[[], object]:
        return lambda: function(*inputs)

    return make


def both(grad: Tensor, *inputs: Tensor) -> MakeStep:
    """Makes a step that calls a function on the inputs and takes their gradients. grad: that of the result."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]

    def make(function: Function) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    return make
