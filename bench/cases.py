"""The lists of tensors that are measured, and the memory that all contestants share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A list of tensors. `key` stays the same when `title` and `shapes` are those of a quick run."""

    key: str
    title: str
    shapes: list[Shape]

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


def gpt2_shapes(width: int) -> list[Shape]:
    """The parameters of GPT-2 with 12 blocks: 148 tensors. Width 768 is the one of 124,439,808 parameters."""
    layer_norm: list[Shape] = [(width,), (width,)]
    block: list[Shape] = [
        *layer_norm,
        (width, 3 * width),  # query, key, value
        (3 * width,),
        (width, width),
        (width,),
        *layer_norm,
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    return [(50257, width), (1024, width), *(12 * block), *layer_norm]


def flat_case(quick: bool) -> Case:
    """One tensor, far larger than any cache."""
    return Case("flat", "4M flat", [(2**22,)]) if quick else Case("flat", "67M flat", [(2**26,)])


def gpt2_case(quick: bool) -> Case:
    """What is trained in practice: a few large tensors, and many small ones between them."""
    if quick:
        return Case("gpt2", "GPT-2, width 192", gpt2_shapes(192))
    return Case("gpt2", "GPT-2 124M", gpt2_shapes(768))


def small_case() -> Case:
    """1,000 tensors of 1,000 elements: what is paid for a tensor rather than for a byte."""
    return Case("small", "1,000 x 1,000", [(1000,)] * 1000)


class Storage:
    """Parameters, gradients and optimizer states of a case: one set for all contestants.

    Where arrays happen to lie (which physical pages, on which memory channel, how they are aligned to each other)
    changes the time of the same loop by tens of percent. So every contestant works on the very same arrays, and a
    difference between two of them cannot come from there. They leave different values behind, which is no matter:
    no step takes longer for other values, as long as those are ordinary numbers, and that they stay.
    """

    def __init__(self, case: Case, num_states: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(shape: Shape) -> torch.Tensor:
            return torch.rand(shape, generator=generator)

        self.params = [torch.nn.Parameter(draw(shape).sub_(0.5).to(dtype)) for shape in case.shapes]
        self.grads = [draw(shape).add_(0.5).mul_(1e-3).to(dtype) for shape in case.shapes]
        self.states = [[torch.zeros(shape, dtype=dtype) for shape in case.shapes] for _ in range(num_states)]
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad

    def zero_states(self) -> None:
        """A fresh start for another optimizer, in the same memory."""
        for state in self.states:
            for tensor in state:
                tensor.zero_()

    def lend_states(self, optimizer: torch.optim.Optimizer, names: tuple[str, ...], counts_steps: bool) -> None:
        """Make the optimizer use our arrays as its states of these names, instead of allocating its own."""
        for i, param in enumerate(self.params):
            state = optimizer.state[param]
            for name, tensors in zip(names, self.states, strict=False):
                state[name] = tensors[i]
            if counts_steps:
                state["step"] = torch.zeros(())
