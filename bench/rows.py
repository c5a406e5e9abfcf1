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

# A contestant that only shows how steady the machine is, in rows that have neither a floor nor a peak. It is no result.
YARDSTICK = "yardstick"
YARDSTICKS = (FLOOR, PEAK)

# A row is noisy where others used more than this share of the CPUs, or where the quartiles of the floor's own repeats
# (of the peak's, where there is no floor) lie further apart than this share of their median. On a quiet machine they
# lie 1% apart in half of the rows, less than 8% in nine of ten.
QUIET_LOAD = 0.05
STEADY_SPREAD = 0.10


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
    names = [name for name in timings.seconds if name != YARDSTICK]
    spreads = [timings.spread(name).relative for name in (*YARDSTICKS, YARDSTICK) if name in timings.seconds]
    condition: Row = {"other_load": timings.other_load, "yardstick_spread": spreads[0] if spreads else None}
    noisy = bool(noise(condition))
    return {
        **condition,
        "contestants": {
            name: {"seconds": asdict(timings.spread(name)), "rounds": len(timings.seconds[name]), **details(name)}
            for name in names
        },
        "ratios": {name: _ratio(timings.ratio(OURS, name), at_most.get(name), noisy) for name in names if name != OURS},
    }


def noise(row: Row) -> str:
    """Why the machine was too busy or too unsteady for this row to be trusted; empty if it was not."""
    load, spread = row.get("other_load"), _yardstick_spread(row)
    reasons = []
    if load is not None and load > QUIET_LOAD:
        reasons.append(f"others used {load:.0%} of the CPUs")
    if spread is not None and spread > STEADY_SPREAD:
        reasons.append(f"the floor's own repeats spread by {spread:.0%}")
    return ", ".join(reasons)


def _yardstick_spread(row: Row) -> float | None:
    """As written down, or, in files of schema 1, from the floor's or the peak's quartiles."""
    stored: float | None = row.get("yardstick_spread")
    if stored is not None:
        return stored
    for name in YARDSTICKS:
        if name in row.get("contestants", {}):
            return Spread(**row["contestants"][name]["seconds"]).relative
    return None


def _ratio(ratio: Spread, at_most: float | None, noisy_row: bool) -> Row:
    """`met` is the verdict by the median; `noisy` says that this run does not settle it."""
    if at_most is None:
        return asdict(ratio)
    straddles = ratio.q1 <= at_most < ratio.q3
    return {**asdict(ratio), "at_most": at_most, "met": ratio.median <= at_most, "noisy": straddles or noisy_row}


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
