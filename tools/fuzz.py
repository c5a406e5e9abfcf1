"""Calls every function of fusestep.ops, and the reader of DLPack, with random arguments: half of them valid.

    python tools/fuzz.py [--calls 1000000] [--processes 2] [--seed N]
    python tools/fuzz.py --call SEED/NUMBER              one call once more

Of a valid call the result is compared with the references (bit for bit where bits are promised), and no byte beside
its outputs may change, nor beside the results that it allocates. Any other call either does no more than a valid one
may, or raises TypeError or ValueError that names operation and argument; then no byte of any argument has changed. A
call is a function of its number, so a failure repeats alone; a crash leaves the number in the process's last line.
"""

from __future__ import annotations

import argparse
import faulthandler
import inspect
import multiprocessing
import random
import re
import secrets
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))

MOST_SECONDS = 60  # of one call: it hangs then, and the process ends


def assert_refusal(call: Any, error: Exception) -> None:
    from fusestep import ops

    text = str(error)
    if type(error) is RuntimeError:  # what was put in may ask for it
        assert re.match(rf"{call.operation}: .*norm", text), text
        return
    assert type(error) in (TypeError, ValueError), f"a {type(error).__name__}"
    # What Python says of a signature names the argument too.
    if re.match(rf"{call.operation}(:|\(\)) (missing|got an unexpected) .*argument", text):
        return
    named = re.match(rf"{call.operation}: (\w+)[\w.\[\]]*: expected .+, got .", text, re.DOTALL)
    assert named, f"the message {text[:300]!r}"
    assert named[1] in inspect.signature(getattr(ops, call.operation)).parameters, (
        f"the argument that is named: {text[:300]!r}"
    )


def make_call(name: str, seed: str, spoiled: bool) -> None:
    """Raises AssertionError where a call does what it should not."""
    import hostile
    import random_calls
    from arena import FILLING, as_array

    call = random_calls.make(name, seed)
    draw = random.Random(f"{seed} spoiled")
    for _ in range(draw.choice((1, 1, 1, 2)) if spoiled else 0):
        hostile.spoil(draw, call)
    before = call.arena.bytes.copy()
    outputs = [as_array(value) for value in hostile.arrays_of(call, call.written)]
    old = [output.copy() for output in outputs]
    try:
        with call.arena.instead_of_empty() as results:
            result = call.run()
    except Exception as error:
        if not spoiled and not call.not_finite:
            raise
        assert_refusal(call, error)
        assert np.array_equal(call.arena.bytes, before), "it wrote before it refused"
        return
    if not spoiled:
        call.check(result)
    for array in results:
        array.reshape(-1).view(np.uint8)[...] = FILLING
    # With the old elements back in the outputs, every byte is what it was.
    for output, values in zip(outputs, old, strict=True):
        if output.flags.writeable:
            output[...] = values
    assert np.array_equal(call.arena.bytes, before), "it wrote beside its outputs"


def run(seed: int, first: int, step: int, calls: int, number: Any, failures: Any) -> None:
    """The calls `first`, `first + step`, ...; `number` is always the one at work."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    import random_calls
    import torch

    torch.set_num_threads(1)  # the processes share the cores out
    # The bounds of attention and softmax take a hundred times as long as the other references.
    weights = {name: 1 if name.startswith(("attention", "masked")) else 5 for name in random_calls.MAKERS}
    kinds: set[str] = set()
    for number.value in range(first, calls, step):
        at = f"{seed}/{number.value}"
        draw = random.Random(at)
        [name] = draw.choices(tuple(weights), tuple(weights.values()))
        spoiled = draw.random() < 0.5
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
        try:
            make_call(name, at, spoiled)
        except Exception as error:
            failures.value += 1
            kind = f"{name}: {re.sub('[0-9]+', '', str(error))[:80]}"
            if kind not in kinds:
                kinds.add(kind)
                print(f"fuzz: call {at}, {name}: {traceback.format_exc(limit=-3)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--call", help="SEED/NUMBER, as a failure names it")
    options = parser.parse_args()
    first, step, calls = 0, options.processes, options.calls
    if options.call:
        options.seed, first = map(int, options.call.split("/"))
        options.processes, step, calls = 1, 1, first + 1

    # Ended from outside it ends as from within, and its processes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("fuzz: ended by a signal"))
    print(f"fuzz: {calls - first} calls with seed {options.seed}", flush=True)
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    workers = []
    for k in range(options.processes):
        number, failures = spawn.RawValue("q", -1), spawn.RawValue("q", 0)
        process = spawn.Process(target=run, args=(options.seed, first + k, step, calls, number, failures), daemon=True)
        process.start()
        workers.append((process, number, failures))
    failed = 0
    for process, number, failures in workers:
        process.join()
        failed += failures.value
        if process.exitcode != 0:
            failed += 1
            print(f"fuzz: call {options.seed}/{number.value} ended its process: exit code {process.exitcode}")
    seconds = time.monotonic() - started
    print(f"fuzz: {failed} failures; {(calls - first) / seconds:.0f} calls a second, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
