"""The floor: the time that the memory itself takes.

A step of an optimizer is bound by memory, so no step can be faster than its reads and writes alone. The floor does
exactly those, on the same arrays, with the same threads, with one operation on bits for each vector, and it runs in the
same rounds as the contestants. What it updates keeps its values; what it only writes becomes zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fusestep._core as _core
import torch

from .cases import Storage
from .timing import Contestant

NAME = "floor"

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Pass:
    """What one pass over the elements moves: lists of tensors, one list for each role (parameters, gradients, ...)."""

    updated: tuple[Tensors, ...] = ()  # read and written
    read: tuple[Tensors, ...] = ()
    written: tuple[Tensors, ...] = ()

    @property
    def bytes_per_element(self) -> int:
        moved = (*self.updated, *self.updated, *self.read, *self.written)
        return sum(tensors[0].element_size() for tensors in moved)


def floor(*passes: Pass) -> Contestant:
    """The passes, one after another, through memory."""
    lists = [([*map(_detached, p.updated)], [*map(_detached, p.read)], [*map(_detached, p.written)]) for p in passes]

    def step() -> None:
        for updated, read, written in lists:
            _core.stream_floor(updated, read, written)

    return Contestant(NAME, step)


def bytes_per_element(*passes: Pass) -> int:
    return sum(p.bytes_per_element for p in passes)


def step_passes(storage: Storage, num_states: int, clipping: bool = False) -> list[Pass]:
    """A step with so many states: parameters and states are updated, gradients read.

    With clipping the gradients are read once more, before everything else, for the norm.
    """
    update = Pass((storage.params, *storage.states[:num_states]), (storage.grads,))
    return [Pass(read=(storage.grads,)), update] if clipping else [update]


def _detached(tensors: Tensors) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in tensors]
