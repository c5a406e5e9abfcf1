"""The CUDA kernels without a GPU: the tests of the CPU's kernels once more, on the kernels of cuda/ under emulation.

The same declared cases against the same references: optimizers and norms bit for bit, dropout's masks bit for bit,
the masked softmax within the same derived tolerances. What is left out is about the CPU's attention, or is told below.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    emulated_cuda.module_file() is None, reason="built without FUSESTEP_EMULATE_CUDA=ON (`make test` builds with it)"
)


def run(*arguments):
    # In front of what is there: make gpu names its own installation so.
    paths = [str(ROOT / "tests/support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests/ops/test_ops_optim.py"],
        ["tests/ops/test_ops_16bit.py"],
        ["tests/ops/test_norm_clip.py", "-m", "not slow"],
        # Attention has no CUDA kernels yet, and is refused.
        pytest.param(["tests/ops/test_masked_softmax.py", "-k", "not attention"], marks=pytest.mark.slow),
        ["tests/cuda/emulated_cases.py"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_tests_of_the_cpu(arguments):
    file, *more = arguments
    result = run("-m", "pytest", "-q", "-p", "emulated_cuda", "-p", "no:cacheprovider", file, *more)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_the_emulated_module_is_another_one():
    """The plugin does what it says: the tests above ran on emulated kernels."""
    result = run(
        "-c", "import emulated_cuda; emulated_cuda.install(); import fusestep; print(fusestep.info()['cuda_devices'])"
    )
    assert result.stdout.strip() == "['emulated (compute capability 8.0)']", result.stderr
