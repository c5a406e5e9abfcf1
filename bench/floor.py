"""The floor: the time that the memory itself takes.

A step of an optimizer is bound by memory, so no step can be faster than its reads and writes alone. The floor does
exactly those, in place, on the same arrays, with the same threads, with one multiply-add for each element written,
and it runs in the same rounds as the contestants.
"""

from __future__ import annotations

from collections.abc import Sequence

import fusestep._core as _core
import torch

from .cases import Storage
from .timing import Contestant

NAME = "floor"

_FLOAT32 = 4


def bytes_per_element(num_states: int, clipping: bool = False) -> int:
    """What a step moves: parameter, gradient and states are read; parameter and states written.

    With clipping the gradients are read once more, before everything else, for the norm.
    """
    return _FLOAT32 * ((2 + num_states) + (1 + num_states) + (1 if clipping else 0))


def floor(storage: Storage, num_states: int, clipping: bool = False) -> Contestant:
    """The floor of a step with so many states. Of a list, all but the last array are read and written."""
    params = [param.detach() for param in storage.params]
    update: list[Sequence[torch.Tensor]] = [params, *storage.states[:num_states], storage.grads]
    passes: list[list[Sequence[torch.Tensor]]] = [[storage.grads], update] if clipping else [update]

    def step() -> None:
        for arrays in passes:
            _core.stream_floor(arrays)

    return Contestant(NAME, step)
