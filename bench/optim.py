"""`fusestep bench optim`: a step of every optimizer against torch's fused and foreach ones and the floor."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import fusestep.optim
import torch

from .cases import Case, Storage
from .floor import NAME as FLOOR
from .floor import bytes_per_element, floor
from .rows import OURS, Bar, Row, timing_row
from .timing import Contestant, Effort, measure

FUSED = "torch fused"
FOREACH = "torch foreach"

# AdamW with its moments in 8 bits, beside float32 moments, and who else has it: module, class.
EIGHT_BIT = "AdamW, 8-bit moments"
FLOAT32 = "fusestep float32"
EIGHT_BIT_BYTES = 16  # parameter, gradient and two codes are read, parameter and codes written; scales are 1/256 of it
EIGHT_BIT_PEERS = {"bitsandbytes": ("bitsandbytes.optim", "AdamW8bit"), "torchao": ("torchao.optim", "AdamW8bit")}


@dataclass(frozen=True)
class Entry:
    """An optimizer: its class in torch.optim and in fusestep.optim, and the names of its states there."""

    title: str
    cls: str
    states: tuple[str, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    fused: bool = True
    counts_steps: bool = True


ENTRIES = (
    Entry("AdamW", "AdamW", ("exp_avg", "exp_avg_sq")),
    Entry("Adam", "Adam", ("exp_avg", "exp_avg_sq")),
    Entry("RMSprop", "RMSprop", ("square_avg",), fused=False),  # torch has no fused one
    Entry("Adagrad", "Adagrad", ("sum",)),
    Entry("SGD-momentum", "SGD", ("momentum_buffer",), {"momentum": 0.9}, counts_steps=False),
)

BARS = (
    Bar("AdamW", "flat", FUSED, 0.95),
    *(
        Bar(operation, case, FLOOR, 1.08)
        for operation in ("AdamW", "Adagrad", "SGD-momentum")
        for case in ("flat", "gpt2")
    ),
    Bar("RMSprop", "flat", FOREACH, 0.10),
    *(Bar(EIGHT_BIT, case, FUSED, 0.8) for case in ("flat", "gpt2")),
)


def contestants(entry: Entry, storage: Storage, slow_rounds: int) -> list[Contestant]:
    """Everybody who can do this step, all on the same arrays."""
    lr = 1e-3

    def step_of(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        storage.lend_states(optimizer, entry.states, entry.counts_steps)
        return optimizer.step

    torch_class = getattr(torch.optim, entry.cls)
    our_class = getattr(fusestep.optim, entry.cls)
    foreach = torch_class(storage.params, lr=lr, foreach=True, **entry.options)
    result = [
        Contestant(OURS, step_of(our_class(storage.params, lr=lr, **entry.options))),
        floor(storage, len(entry.states)),
        Contestant(FOREACH, step_of(foreach), slow_rounds),
    ]
    if entry.fused:
        fused = torch_class(storage.params, lr=lr, fused=True, **entry.options)
        result.append(Contestant(FUSED, step_of(fused)))
    return result


def eight_bit_contestants(storage: Storage, slow_rounds: int) -> list[Contestant]:
    """Moments in 8 bits beside those of float32, which share theirs; peers keep their own."""
    names, lr = ("exp_avg", "exp_avg_sq"), 1e-3
    ours = fusestep.optim.AdamW(storage.params, lr=lr, state_dtype="8bit")
    wide = fusestep.optim.AdamW(storage.params, lr=lr)
    fused = torch.optim.AdamW(storage.params, lr=lr, fused=True)
    for optimizer in (wide, fused):
        storage.lend_states(optimizer, names, counts_steps=True)
    result = [Contestant(OURS, ours.step), Contestant(FLOAT32, wide.step), Contestant(FUSED, fused.step)]
    for name, (module, cls) in EIGHT_BIT_PEERS.items():
        try:
            peer = getattr(importlib.import_module(module), cls)
        except ImportError:
            continue
        result.append(Contestant(name, peer(storage.params, lr=lr).step, slow_rounds))
    return result


def run(
    cases: Iterable[Case], effort: Effort, say: Callable[[str], None], entries: Iterable[Entry] = ENTRIES
) -> list[Row]:
    """One row for each optimizer and case. say: is told what is measured next."""
    rows = []
    for case in cases:
        storage = Storage(case, num_states=2)
        for entry in entries:
            say(f"{entry.title}, {case.title}")
            storage.zero_states()
            timings = measure(contestants(entry, storage, effort.slow_rounds), effort)
            num_bytes = bytes_per_element(len(entry.states))
            rows.append(timing_row("optim", entry.title, case, num_bytes, timings, BARS))
        say(f"{EIGHT_BIT}, {case.title}")
        storage.zero_states()
        timings = measure(eight_bit_contestants(storage, effort.slow_rounds), effort)
        rows.append(timing_row("optim", EIGHT_BIT, case, EIGHT_BIT_BYTES, timings, BARS))
    return rows
