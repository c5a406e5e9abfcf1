"""`fusestep bench overhead`: what a call and a tensor cost before any arithmetic, and which binding costs less."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import fusestep._core as _core
import fusestep.optim
import torch

from . import nanobind_module
from .cases import Case, Storage
from .rows import OURS, Row, timing_row
from .session import Session
from .timing import Contestant, Effort, measure

PYBIND11 = "pybind11 (fusestep)"
NANOBIND = "nanobind"
# A step of AdamW reads four arrays for each tensor: parameter, gradient, two moments.
ROLES = 4


class OnlyCapsules:
    """A tensor of a library that has `__dlpack__` and nothing faster."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> object:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> object:
        return self._tensor.__dlpack_device__()


@dataclass(frozen=True)
class Way:
    """A way to read a list of arrays: `read` returns how many there were."""

    binding: str
    source: str
    read: Callable[[list[object]], int]
    array: Callable[[torch.Tensor], object]


def ways(say: Callable[[str], None]) -> list[Way]:
    """Ours, and nanobind's if it can be built here."""

    def parameter(tensor: torch.Tensor) -> object:
        return torch.nn.Parameter(tensor)

    exchange, capsules, numpy = "torch, C exchange API", "torch, __dlpack__ capsules", "NumPy"
    result = [
        Way(PYBIND11, exchange, _core.read_tensors, parameter),
        Way(PYBIND11, capsules, _core.read_tensors, OnlyCapsules),
        Way(PYBIND11, numpy, _core.read_tensors, torch.Tensor.numpy),
    ]
    try:
        module = nanobind_module.load()
    except nanobind_module.NotAvailable as missing:
        say(f"nanobind is not measured: {missing}")
        return result
    return [
        *result,
        Way(NANOBIND, f"{exchange}, read as fusestep does", module.read_exchange_api, parameter),
        # Not parameters: they refuse to be exported as capsules while they require a gradient.
        Way(NANOBIND, "torch, ndarray", module.read_ndarrays, torch.Tensor.detach),
        Way(NANOBIND, "NumPy, ndarray", module.read_ndarrays, torch.Tensor.numpy),
    ]


def run(lengths: Iterable[int], session: Session) -> list[Row]:
    """Rows for the ways to read, then a timing row for steps over tensors of a single element.

    lengths: numbers of parameters; a list to read has ROLES times as many arrays.
    """
    everybody = ways(session.say)
    rows = []
    for length in (0, *lengths):
        session.say(f"reading {length} x {ROLES} arrays")
        rows += read_rows(everybody, length, session.effort)
    session.say("AdamW, 1,000 tensors of 1 element")
    rows.append(step_row(Case("ones", "1,000 x 1", [(1,)] * 1000), session.effort))
    return rows


def read_rows(everybody: list[Way], length: int, effort: Effort) -> list[Row]:
    """Nanoseconds a call; and a tensor, if there are any. An empty list shows the call alone."""
    count = length * ROLES
    contestants = []
    for way in everybody:
        arrays = [way.array(torch.zeros(1)) for _ in range(count)]
        if way.read(arrays) != count:
            raise AssertionError(f"{way.binding}, {way.source}: did not read {count} arrays")
        contestants.append(Contestant(f"{way.binding}, {way.source}", _reading(way, arrays)))
    timings = measure(contestants, effort)
    rows = []
    for way, contestant in zip(everybody, contestants, strict=True):
        seconds = timings.spread(contestant.name)
        rows.append(
            {
                "bench": "overhead",
                "binding": way.binding,
                "source": way.source,
                "arrays": count,
                "ns_a_call": {name: value * 1e9 for name, value in asdict(seconds).items()},
                "ns_an_array": seconds.median * 1e9 / count if count else None,
                "other_load": timings.other_load,
            }
        )
    return rows


def _reading(way: Way, arrays: list[object]) -> Callable[[], object]:
    return lambda: way.read(arrays)


def step_row(case: Case, effort: Effort) -> Row:
    """A step of AdamW where there is next to nothing to compute."""
    storage = Storage(case, num_states=2)
    optimizers: dict[str, torch.optim.Optimizer] = {
        OURS: fusestep.optim.AdamW(storage.params),
        "torch fused": torch.optim.AdamW(storage.params, fused=True),
        "torch foreach": torch.optim.AdamW(storage.params, foreach=True),
    }
    for optimizer in optimizers.values():
        storage.lend_states(optimizer, ("exp_avg", "exp_avg_sq"), counts_steps=True)
    contestants = [Contestant(name, optimizer.step) for name, optimizer in optimizers.items()]
    return timing_row("overhead", "AdamW", case, None, measure(contestants, effort))
