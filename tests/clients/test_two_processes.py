"""transformers' Trainer, Accelerate and Lightning over one and two processes, with fusestep's optimizer: DDP, and
Lightning's FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[pytest.param(1, id="one process", marks=pytest.mark.exhaustive), pytest.param(2, id="two processes")],
)
def results(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("clients") / "results.json"
    program = Path(__file__).with_name("two_processes.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    done = subprocess.run(
        [*launcher, program, file],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("library", ["Accelerate", "transformers", "Lightning", "Lightning, FSDP2"])
def test_trains_as_torchs_own(results, library):
    assert isinstance(results[library], list), results[library]
    ours, theirs, same = results[library]
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, rel=1e-5)  # float32, six updates
    assert same  # every process has the same parameters
    assert len(set(ours)) == 6
