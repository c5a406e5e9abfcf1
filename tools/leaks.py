"""Calls every function of fusestep.ops over and over: neither memory nor references to its arguments may grow.

    python tools/leaks.py [--calls 100000]

For each function some calls are drawn, valid ones and ones with something in the place of an argument that is refused
(tests/support). They are made in turns; the counts of references are compared after a quarter and at the end: of every
argument, of its type, of None and of what came back, and the blocks that Python's allocator has given out. So is the
memory of the process, in which C++'s lie.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))

DRAWN = 24  # calls of a function, half of them refused
# What may grow between two looks without being a leak: caches, and what the looks keep. Each call is made 231 times
# between them, so a leak is more.
MOST_BLOCKS = 200
MOST_BYTES = 4 << 20


def drawn(name: str) -> list[Any]:
    import hostile
    import random_calls

    calls = []
    for i in range(DRAWN):
        call = random_calls.make(name, f"leaks {name} {i}")
        draw = random.Random(f"{name} {i}")
        if i % 2:
            hostile.spoil(draw, call)
        calls.append(call)
    return calls


def is_right(call: Any) -> bool:
    try:
        call.run()
    except Exception:
        return False
    return True


def make(calls: list[Any], number: int) -> int:
    """How many of them were right; the others were refused."""
    return sum(is_right(calls[i % len(calls)]) for i in range(number))


def references(calls: list[Any]) -> list[int]:
    gc.collect()
    values = [v for call in calls for value in call.arguments.values() for v in (value, *items(value))]
    return [sys.getrefcount(v) for v in values] + [sys.getrefcount(type(v)) for v in values]


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth(name: str, number: int) -> str:
    """What grew, or nothing."""
    calls = drawn(name)
    make(calls, number // 4)
    before, blocks, resident = references(calls), sys.getallocatedblocks(), resident_bytes()
    right = make(calls, number)
    grown = [after - count for after, count in zip(references(calls), before, strict=True) if after - count > DRAWN]
    blocks = sys.getallocatedblocks() - blocks
    resident = resident_bytes() - resident
    print(
        f"leaks: {name}: {right} right, {number - right} refused; {blocks:+} blocks, {resident >> 10:+} KiB", flush=True
    )
    found = [f"references by {max(grown)}"] if grown else []
    found += [f"Python's blocks by {blocks}"] if blocks > MOST_BLOCKS else []
    found += [f"memory by {resident >> 10} KiB"] if resident > MOST_BYTES else []
    return ", ".join(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import random_calls

    started = time.monotonic()
    number = options.calls // len(random_calls.MAKERS)
    leaks = {name: growth(name, number) for name in random_calls.MAKERS}
    leaks = {name: what for name, what in leaks.items() if what}
    for name, what in leaks.items():
        print(f"leaks: {name}: grew: {what}")
    print(f"leaks: {len(leaks)} leaks in {time.monotonic() - started:.0f} s")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
