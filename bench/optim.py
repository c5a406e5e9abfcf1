"""`fusestep bench optim`: a step of every optimizer against torch's fused and foreach ones and the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fusestep.optim
import torch

from .cases import Case, Storage
from .floor import NAME as FLOOR
from .floor import Pass, bytes_per_element, floor, step_passes
from .peers import ADAMW, EIGHT_BIT, LR
from .rows import OURS, Bar, Row, timing_row
from .session import Session
from .timing import Contestant, measure

FUSED = "torch fused"
FOREACH = "torch foreach"
FLOAT32 = "fusestep float32"  # beside moments in 8 bits


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


@dataclass(frozen=True)
class Precision:
    """AdamW with other numbers than float32: the parameters' and gradients' dtype, and what ours is given."""

    title: str
    dtype: torch.dtype
    options: Mapping[str, Any] = field(default_factory=dict)


PRECISIONS = (
    Precision(EIGHT_BIT, torch.float32, {"state_dtype": "8bit"}),
    Precision("AdamW, bf16", torch.bfloat16),
    Precision("AdamW, bf16, stochastic rounding", torch.bfloat16, {"rounding": "stochastic", "seed": 0}),
    Precision("AdamW, bf16, Kahan summation", torch.bfloat16, {"rounding": "kahan"}),
    Precision("AdamW, bf16, master weights", torch.bfloat16, {"master_weights": True}),
    Precision("AdamW, bf16, 8-bit moments", torch.bfloat16, {"state_dtype": "8bit"}),
)

TITLES = tuple(row.title for row in (*ENTRIES, *PRECISIONS))

BARS = (
    Bar("AdamW", "flat", FUSED, 0.95),
    *(
        Bar(operation, case, FLOOR, 1.08)
        for operation in ("AdamW", "Adagrad", "SGD-momentum")
        for case in ("flat", "gpt2")
    ),
    Bar("RMSprop", "flat", FOREACH, 0.10),
    *(Bar(EIGHT_BIT, case, FUSED, 0.8) for case in ("flat", "gpt2")),
    Bar("AdamW, bf16", "gpt2", FLOOR, 1.08),
    Bar("AdamW, bf16, stochastic rounding", "gpt2", FLOOR, 1.25),
    Bar("AdamW, bf16, Kahan summation", "gpt2", FLOOR, 1.15),
    Bar("AdamW, bf16, master weights", "gpt2", FLOOR, 1.08),
)


def contestants(entry: Entry, storage: Storage, session: Session) -> list[Contestant]:
    """Everybody who can do this step; ours, torch's and the floor on the same arrays, peers on their own states."""

    def step_of(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        storage.lend_states(optimizer, entry.states, entry.counts_steps)
        return optimizer.step

    slow = session.effort.slow_rounds
    torch_class = getattr(torch.optim, entry.cls)
    our_class = getattr(fusestep.optim, entry.cls)
    foreach = torch_class(storage.params, lr=LR, foreach=True, **entry.options)
    result = [
        Contestant(OURS, step_of(our_class(storage.params, lr=LR, **entry.options))),
        floor(*step_passes(storage, len(entry.states))),
        Contestant(FOREACH, step_of(foreach), slow),
    ]
    if entry.fused:
        fused = torch_class(storage.params, lr=LR, fused=True, **entry.options)
        result.append(Contestant(FUSED, step_of(fused)))
    if entry.title == ADAMW:
        result += session.peers.contestants(ADAMW, storage, max_rounds=slow)
    return result


def precise_contestants(precision: Precision, storage: Storage, session: Session) -> tuple[list[Contestant], int]:
    """Ours, whose states the others share where they have the same dtype; and the bytes of an element.

    The blocks' scales of moments in 8 bits, 1/256 as many as elements, are not counted.
    """
    ours = fusestep.optim.AdamW(storage.params, lr=LR, **precision.options)
    ours.step()
    moved = moves(ours, storage)
    fused = torch.optim.AdamW(storage.params, lr=LR, fused=True)
    if "8-bit" not in precision.title:
        for param in storage.params:
            shared = {name: ours.state[param][name] for name in ("exp_avg", "exp_avg_sq")}
            fused.state[param] = {**shared, "step": torch.zeros(())}
    result = [Contestant(OURS, ours.step), floor(moved), Contestant(FUSED, fused.step)]
    if precision.title == EIGHT_BIT:
        wide = fusestep.optim.AdamW(storage.params, lr=LR)
        for optimizer in (wide, fused):
            storage.lend_states(optimizer, ("exp_avg", "exp_avg_sq"), counts_steps=True)
        result.append(Contestant(FLOAT32, wide.step))
        result += session.peers.contestants(EIGHT_BIT, storage, max_rounds=session.effort.slow_rounds)
    return result, bytes_per_element(moved)


def moves(optimizer: torch.optim.Optimizer, storage: Storage) -> Pass:
    """What a step of our optimizer moves: its states as they are; with a master copy, parameters are only written."""
    states = [optimizer.state[param] for param in storage.params]
    names = [name for name in states[0] if name != "step" and not name.endswith("_absmax")]
    lists = tuple([state[name] for state in states] for name in names)
    if "master_param" in names:
        return Pass(updated=lists, read=(storage.grads,), written=(storage.params,))
    return Pass(updated=(storage.params, *lists), read=(storage.grads,))


def run(
    cases: Iterable[Case],
    session: Session,
    entries: Iterable[Entry] = ENTRIES,
    precisions: Iterable[Precision] = PRECISIONS,
) -> list[Row]:
    """One row for each optimizer and case, then for each precision."""
    rows = []
    for case in cases:
        storage = Storage(case, num_states=2)
        for entry in entries:
            session.say(f"{entry.title}, {case.title}")
            storage.zero_states()
            timings = measure(contestants(entry, storage, session), session.effort)
            num_bytes = bytes_per_element(*step_passes(storage, len(entry.states)))
            rows.append(timing_row("optim", entry.title, case, num_bytes, timings, BARS))
        for precision in precisions:
            session.say(f"{precision.title}, {case.title}")
            if precision.dtype != storage.params[0].dtype:
                storage = Storage(case, num_states=0, dtype=precision.dtype)
            storage.zero_states()
            everybody, num_bytes = precise_contestants(precision, storage, session)
            timings = measure(everybody, session.effort)
            rows.append(timing_row("optim", precision.title, case, num_bytes, timings, BARS))
    return rows
