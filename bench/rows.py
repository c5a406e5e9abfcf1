"""Results as plain dictionaries: what the JSON holds and what the table is printed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .cases import Case
from .floor import NAME as FLOOR
from .timing import Spread, Timings

OURS = "fusestep"
PEAK = "fma peak"

Row = dict[str, Any]

# Beyond this share of the CPUs used by others, a verdict is marked as noisy.
QUIET_LOAD = 0.05


@dataclass(frozen=True)
class Bar:
    """The most that our time may be of that of `against`, for an operation in the case of this key."""

    operation: str
    case: str
    against: str
    at_most: float


def timing_row(
    bench: str, operation: str, case: Case, num_bytes: int | None, timings: Timings, bars: Iterable[Bar] = ()
) -> Row:
    """Times, bandwidths and ratios of one operation on one case.

    num_bytes: what the operation has to move for an element; None where bandwidth means nothing.
    """

    def contestant(name: str) -> Row:
        spread = timings.spread(name)
        return {
            "gb_per_s": None if num_bytes is None else num_bytes * case.elements / spread.median / 1e9,
            "share_of_floor_bandwidth": 1 / timings.ratio(name, FLOOR).median if FLOOR in timings.seconds else None,
        }

    return {
        "bench": bench,
        "operation": operation,
        "case": case.title,
        "tensors": len(case.shapes),
        "elements": case.elements,
        "bytes_per_element": num_bytes,
        **_times(operation, case.key, timings, bars, contestant),
    }


def work_row(
    bench: str,
    operation: str,
    case: str,
    flops: float,
    timings: Timings,
    growth: Mapping[str, int | None],
    bars: Iterable[Bar] = (),
) -> Row:
    """Times, arithmetic, memory and ratios of one operation on one case.

    flops: what is computed at least. growth: bytes of peak memory, of those contestants where it was measured.
    PEAK has to be among the contestants.
    """

    def contestant(name: str) -> Row:
        return {
            "gflop_per_s": flops / timings.spread(name).median / 1e9,
            "share_of_peak": 1 / timings.ratio(name, PEAK).median,
            "peak_growth": growth.get(name),
        }

    return {
        "bench": bench,
        "operation": operation,
        "case": case,
        "flops": flops,
        **_times(operation, case, timings, bars, contestant),
    }


def _times(
    operation: str, key: str, timings: Timings, bars: Iterable[Bar], details: Callable[[str], Row]
) -> dict[str, Any]:
    at_most = {bar.against: bar.at_most for bar in bars if (bar.operation, bar.case) == (operation, key)}
    return {
        "other_load": timings.other_load,
        "contestants": {
            name: {"seconds": asdict(timings.spread(name)), "rounds": len(timings.seconds[name]), **details(name)}
            for name in timings.seconds
        },
        "ratios": {
            name: _ratio(timings.ratio(OURS, name), at_most.get(name), timings.other_load)
            for name in timings.seconds
            if name != OURS
        },
    }


def _ratio(ratio: Spread, at_most: float | None, other_load: float | None) -> Row:
    """`met` is the verdict by the median; `noisy` says that this run does not settle it."""
    if at_most is None:
        return asdict(ratio)
    straddles = ratio.q1 <= at_most < ratio.q3
    busy = other_load is not None and other_load > QUIET_LOAD
    return {**asdict(ratio), "at_most": at_most, "met": ratio.median <= at_most, "noisy": straddles or busy}


def check_row(
    bench: str, what: str, unit: str, ours: float | None, at_most: float, peers: dict[str, float | None]
) -> Row:
    """A figure that is not a time: ours, what it may be at most, and the peers' beside it. None: not measurable."""
    return {
        "bench": bench,
        "check": what,
        "unit": unit,
        OURS: ours,
        "peers": peers,
        "at_most": at_most,
        "met": None if ours is None else ours <= at_most,
    }
