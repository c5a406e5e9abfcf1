"""The CUDA kernels without a GPU: the tests of the CPU's kernels once more, on the kernels of cuda/ under emulation.

The same declared cases against the same references: optimizers and norms bit for bit, dropout's masks bit for bit,
the masked softmax and attention within the same derived tolerances. 16-bit attention runs on both of its paths: that of
compute capability 8.0 and later, and that of 9.0 alone.
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


# Attention's tests that are quick enough under emulation, and say most: every feature, rows with nothing left, grouped
# heads, nothing to attend to, masks of another dtype, the accuracy of 16 bits. float16 and float64 run the code of
# bfloat16 and float32: every feature in all four is for `make exhaustive`.
REST = "rows_with or grouped or nothing or masks_of or low_precision or version"
ATTENTION_IN_EVERY_DTYPE = f"(every_feature and not several) or {REST}"
ONE_OF_EACH_KIND = "(bfloat16 or not float16) and not float64"
IN_FLOAT32 = f"({ATTENTION_IN_EVERY_DTYPE}) and {ONE_OF_EACH_KIND} and not bfloat16"
IN_BFLOAT16 = f"({ATTENTION_IN_EVERY_DTYPE}) and {ONE_OF_EACH_KIND} and bfloat16"
ON_HOPPER_IN_BOTH_DTYPES = f"({ATTENTION_IN_EVERY_DTYPE}) and (float16 or bfloat16) and not float64"
ONE_OF_TWO = ("-p", "one_of", "--one-of=2")  # of these


def run(*arguments, **more_environment):
    # In front of what is there: make gpu names its own installation so.
    paths = [str(ROOT / "tests/support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more_environment}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


# Emulation is slow, and many tests reach each kernel: one test of four, and all of them in `make exhaustive`.
FILES = [
    ["tests/ops/test_ops_optim.py"],
    ["tests/ops/test_ops_16bit.py"],
    # Not the conversions, which are the CPU's alone.
    ["tests/ops/test_ops_8bit.py", "-k", "setting or clipping or (beside and adamw) or of_each_kind"],
    ["tests/ops/test_norm_clip.py", "-m", "not slow"],
    ["tests/ops/test_shards.py"],
    ["tests/ops/test_masked_softmax.py", "-k", "not attention and not number_of_threads"],
    # The host does not look at labels on a device.
    ["tests/ops/test_cross_entropy.py", "-k", "not out_of_range"],
]


def assert_passes(file, *more, **environment):
    result = run("-m", "pytest", "-q", "-p", "emulated_cuda", "-p", "no:cacheprovider", file, *more, **environment)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("one_of", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("arguments", FILES, ids=lambda arguments: arguments[0])
def test_the_tests_of_the_cpu(arguments, one_of):
    assert_passes(*arguments, "-p", "one_of", f"--one-of={one_of}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["tests/cuda/emulated_cases.py"],
        ["tests/ops/test_seed_in_memory.py"],
        ["tests/ops/test_attention_ops.py", "-k", IN_FLOAT32, *ONE_OF_TWO],
        ["tests/ops/test_attention_ops.py", "-k", IN_BFLOAT16, *ONE_OF_TWO],
        pytest.param(["tests/ops/test_attention_ops.py", "-k", ATTENTION_IN_EVERY_DTYPE], marks=pytest.mark.exhaustive),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_says_most_in_little_time(arguments):
    assert_passes(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param([IN_BFLOAT16, *ONE_OF_TWO], id="bfloat16"),
        pytest.param([ON_HOPPER_IN_BOTH_DTYPES], id="every dtype", marks=pytest.mark.exhaustive),
    ],
)
def test_attention_on_hopper(chosen):
    """The path of compute capability 9.0: wgmma, and its own tiles."""
    assert_passes("tests/ops/test_attention_ops.py", "-k", *chosen, FUSESTEP_CUDA_ATTENTION="sm_90a")


def test_the_emulated_module_is_another_one():
    """The plugin does what it says: the tests above ran on emulated kernels."""
    result = run(
        "-c", "import emulated_cuda; emulated_cuda.install(); import fusestep; print(fusestep.info()['cuda_devices'])"
    )
    assert result.stdout.strip() == "['emulated (compute capability 8.0)']", result.stderr
