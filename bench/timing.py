"""Timing of contestants that are interleaved in one run.

What counts on a shared machine are ratios of times taken a moment apart. So all contestants run once in every
round, and a ratio is taken within each round, between neighbours in time; its median over the rounds is the result
and its quartiles say how much it can be trusted.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .load import OtherLoad

# A slot is what is timed between two readings of the clock. Short steps are repeated to fill one: a single step of a
# few microseconds would time the clock, the sleeping threads and what the contestant before left in the caches.
SLOT_SECONDS = 0.02

# The fewest rounds, whatever the budget: three are needed for quartiles that say anything.
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Contestant:
    """A name and the step to be timed.

    max_rounds: take part in the first so many rounds only. For contestants many times slower than the rest, whose
    ratio is clear after a few rounds and which would eat the budget of the others.
    """

    name: str
    step: Callable[[], object]
    max_rounds: int | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure: at most `rounds` rounds, and no new one after `seconds`; `slow_rounds` for slow peers."""

    rounds: int
    seconds: float
    slow_rounds: int


FULL = Effort(rounds=25, seconds=20.0, slow_rounds=7)
MANY = Effort(rounds=11, seconds=4.0, slow_rounds=3)  # for benchmarks of a hundred rows
QUICK = Effort(rounds=5, seconds=0.4, slow_rounds=3)


@dataclass(frozen=True)
class Spread:
    """Quartiles and the smallest of a sample."""

    median: float
    q1: float
    q3: float
    best: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(q1), float(q3), float(min(values)))

    @property
    def relative(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.q3 - self.q1) / self.median


@dataclass(frozen=True)
class Timings:
    """Seconds a step: seconds[name][r] in round r. A contestant with max_rounds has a shorter list.

    other_load: the share of the CPUs that others used meanwhile (see load.py), None where that is unknown.
    """

    seconds: dict[str, list[float]]
    other_load: float | None

    def spread(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def ratio(self, name: str, to: str) -> Spread:
        """The time of `name` over that of `to`, paired by round."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=False)  # the rounds in which both ran
        return Spread.of([a / b for a, b in pairs])


def measure(
    contestants: Sequence[Contestant], effort: Effort, clock: Callable[[], float] = time.perf_counter
) -> Timings:
    """Run all contestants in every round, after a warm-up, and return the seconds a step took.

    clock: returns seconds; replaced in the tests.
    """
    calls = {c.name: _calls_a_slot(c, clock) for c in contestants}
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    # Another order every round: in a fixed one, somebody would always follow whoever wipes the caches. The same
    # orders in every run.
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with OtherLoad() as load:
            start = clock()
            for r in range(effort.rounds):
                if r >= MIN_ROUNDS and clock() - start > effort.seconds:
                    break
                runners = [c for c in contestants if c.max_rounds is None or r < c.max_rounds]
                for contestant in order.sample(runners, len(runners)):
                    seconds[contestant.name].append(_time_slot(contestant, calls[contestant.name], clock))
    finally:
        if collecting:
            gc.enable()
    return Timings(seconds, load.share)


def _calls_a_slot(contestant: Contestant, clock: Callable[[], float]) -> int:
    """Warm up (plans, thread pools, temporaries), and find how many steps fill a slot."""
    contestant.step()
    start = clock()
    contestant.step()
    elapsed = clock() - start
    return max(1, math.ceil(SLOT_SECONDS / elapsed)) if elapsed > 0 else 1


def _time_slot(contestant: Contestant, calls: int, clock: Callable[[], float]) -> float:
    step = contestant.step
    if calls > 1:
        # What is small enough to be repeated fits in a cache: everybody starts with its own data there.
        step()
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls
