"""Code that runs in an interpreter of its own: what it finds depends on imports, environment, limits or forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# A step that several threads share, and what it computed, down to the bits.
PRELUDE = """
import hashlib, json, multiprocessing, os, sys, threading
import numpy as np

def step(n=1 << 18):
    import fusestep
    rng = np.random.default_rng(0)
    param, grad = (rng.standard_normal(n, dtype=np.float32) for _ in range(2))
    moments = np.zeros(n, np.float32), np.zeros(n, np.float32)
    norm = fusestep.ops.adamw_([param], [grad], [moments[0]], [moments[1]], step=1, max_grad_norm=1.0)
    return [norm.hex(), *(hashlib.sha256(a.tobytes()).hexdigest() for a in (param, *moments))]

def source():
    import fusestep
    return fusestep.info()["thread_source"]

def system_threads():
    return len(os.listdir("/proc/self/task"))

def openmp_libraries():
    paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
    return sorted(p for p in paths if os.path.basename(p).startswith(("libgomp", "libomp", "libiomp")))

def in_fork(function):
    def send(pipe):
        pipe.send(function())
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=send, args=(sending,))
    child.start()
    answered = receiving.poll(60)
    if not answered:
        child.kill()
    child.join()
    return receiving.recv() if answered else "the child hangs"
"""


def in_new_python(code, **environment):
    """What `code` printed as JSON in a new interpreter; OMP_NUM_THREADS only if `environment` has it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
