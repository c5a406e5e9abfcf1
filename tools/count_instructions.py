"""Counts the instructions of small calls under callgrind, and compares them with what they were: 2% more is a failure.

    python tools/count_instructions.py            compare with tools/instructions.json
    python tools/count_instructions.py --write    write it anew

Times of small calls differ from run to run; instructions do not, so a per cent shows. They depend on the compiler, on
Python and on NumPy, whose versions the file holds: with others nothing is compared. Needs valgrind with its header
(Debian's and Ubuntu's package valgrind) and a C compiler. Valgrind knows AVX2 and no AVX-512.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HELD = Path(__file__).with_name("instructions.json")
MOST = 1.02
WARM_UPS, CALLS = 3, 10

# Told apart from what else runs in the process: collecting begins and ends around the calls of a case.
REQUESTS = """
#include <valgrind/callgrind.h>
void toggle(void) { CALLGRIND_TOGGLE_COLLECT; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call; one thread, in the caches."""
    import fusestep
    import ml_dtypes
    import numpy as np
    from fusestep import ops

    fusestep.set_num_threads(1)
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def lists(number: int, size: int) -> list[list[np.ndarray]]:
        return [[abs(array(size)) for _ in range(number)] for _ in range(4)]

    for number, size in ((1, 65_536), (100, 100)):
        titles = f"{number} x {size:,}"
        params, grads, exp_avgs, exp_avg_sqs = lists(number, size)
        adamw = params, grads, exp_avgs, exp_avg_sqs
        yield f"adamw_, {titles}", lambda adamw=adamw: ops.adamw_(*adamw, step=1, lr=1e-6)
        yield (
            f"adamw_ with clipping, {titles}",
            lambda adamw=adamw: ops.adamw_(*adamw, step=1, lr=1e-6, max_grad_norm=1.0),
        )
        yield f"sgd_ with momentum, {titles}", lambda a=adamw: ops.sgd_(a[0], a[1], a[2], step=1, lr=1e-6, momentum=0.9)
        yield f"grad_norm, {titles}", lambda grads=grads: ops.grad_norm(grads)
    halves = [[a.astype(ml_dtypes.bfloat16) for a in arrays] for arrays in lists(1, 65_536)]
    zeros = [np.zeros_like(a) for a in halves[0]]
    yield "adamw_ of bfloat16, 1 x 65,536", lambda: ops.adamw_(*halves, step=1, lr=1e-6)
    yield (
        "adamw_ of bfloat16, stochastic, 1 x 65,536",
        lambda: ops.adamw_(*halves, step=1, lr=1e-6, rounding="stochastic", seed=1),
    )
    yield (
        "adamw_ of bfloat16, Kahan, 1 x 65,536",
        lambda: ops.adamw_(*halves, step=1, lr=1e-6, rounding="kahan", compensations=zeros),
    )
    x, out = array(65_536), array(65_536)
    yield "dropout, 65,536", lambda: ops.dropout(x, 0.1, seed=1, out=out)
    query, key, value = (array(1, 2, 64, 32) for _ in range(3))
    yield "attention, (1, 2, 64, 32)", lambda: ops.attention(query, key, value)
    yield "attention, causal, dropout", lambda: ops.attention(query, key, value, causal=True, dropout_p=0.1, seed=1)
    result, lse = ops.attention(query, key, value)
    yield "attention_backward", lambda: ops.attention_backward(value, query, key, value, result, lse)
    scores = array(1, 2, 64, 64)
    yield "masked_softmax, causal", lambda: ops.masked_softmax(scores, causal=True)
    logits, grad, labels = array(16, 4096), array(16, 4096), rng.integers(0, 4096, 16)
    yield "cross_entropy, (16, 4096)", lambda: ops.cross_entropy(logits, labels, grad=grad)
    small = array(4)
    yield "dropout, 4: the call itself", lambda: ops.dropout(small, 0.1, seed=1, out=small)


def run_cases(library: str) -> None:
    """Under callgrind."""
    requests = ctypes.CDLL(library)
    for name, call in cases():
        for _ in range(WARM_UPS):
            call()
        requests.toggle()
        for _ in range(CALLS):
            call()
        requests.toggle()
        requests.dump(name.encode())


def count() -> dict[str, int]:
    """Instructions of a call, by case."""
    with tempfile.TemporaryDirectory() as place:
        source, library = Path(place, "requests.c"), Path(place, "requests.so")
        source.write_text(REQUESTS, encoding="utf-8")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={place}/out",
             sys.executable, __file__, "--library", library],
            capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"count_instructions: the cases failed under callgrind:\n{done.stderr[-3000:]}")
        counts = {}
        for dump in Path(place).glob("out.*"):
            text = dump.read_text(encoding="utf-8")
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
            if name and total:
                counts[name.group(1)] = int(total.group(1)) // CALLS
    return counts


def conditions() -> dict[str, str]:
    """On what the counts depend."""
    import numpy as np

    compiler = subprocess.check_output(["c++", "-dumpfullversion"], text=True).strip()
    return {
        "architecture": platform.machine(),
        "compiler": compiler,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def compare(held: dict[str, int], now: dict[str, int]) -> list[str]:
    """What is wrong, in sentences; prints every case."""
    wrong = [f"{name} is not in {HELD.name}: write it anew" for name in now if name not in held]
    wrong += [f"{name} was not counted" for name in held if name not in now]
    for name in (name for name in now if name in held):
        ratio = now[name] / held[name]
        print(f"{name:40} {now[name]:12,} instructions, {ratio:6.3f} of what they were")
        if ratio > MOST:
            wrong.append(f"{name}: {held[name]:,} instructions have become {now[name]:,}, {ratio - 1:.1%} more")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the instructions of small calls.")
    parser.add_argument("--write", action="store_true", help=f"write {HELD.name} anew")
    parser.add_argument("--library", help=argparse.SUPPRESS)  # what the process under callgrind is given
    options = parser.parse_args()
    if options.library:
        run_cases(options.library)
        return 0
    if shutil.which("valgrind") is None:
        print(
            "count_instructions: expected valgrind, found none. Install it: apt-get install valgrind", file=sys.stderr
        )
        return 2
    where = conditions()
    if options.write:
        HELD.write_text(
            json.dumps({"conditions": where, "instructions": dict(sorted(count().items()))}, indent=1) + "\n",
            encoding="utf-8",
        )
        return 0
    held = json.loads(HELD.read_text(encoding="utf-8"))
    if held["conditions"] != where:
        print(f"count_instructions: counted with {held['conditions']}, and here is {where}: nothing can be compared")
        return 2
    wrong = compare(held["instructions"], count())
    for sentence in wrong:
        print(f"count_instructions: {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
