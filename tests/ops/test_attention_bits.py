"""Attention: the same bits for any number of threads and every time; the same dropout mask everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import problems
import pytest
import torch
from attention_cases import FEATURES, Shape
from attention_runs import DTYPES, arrays, drawn
from fusestep import _core, ops, reference

HERE = Path(__file__).parent


def assert_all_same(got, want):
    for name, one, other in zip(("out", "lse", "query", "key", "value", "mask"), got, want, strict=False):
        problems.assert_same_bits(as_integers(one), as_integers(other), name)


def as_integers(a):
    return a.view(torch.int16).numpy() if isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 else np.asarray(a)


SHAPES = {
    "one head": Shape(1, 1, 1, 300, 330, 32, 32),
    "few": Shape(1, 3, 1, 130, 200, 24, 16),
    "many": Shape(3, 8, 4, 70, 90, 16, 16),
    "one query": Shape(2, 4, 4, 1, 700, 32, 32),
}


@pytest.mark.parametrize("name", ["plain", "causal", "additive_square", "dropout", "everything", "everything_packed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_threads_gives_the_same_bits(shape, name, threads):
    for dtype in DTYPES:
        given = arrays(drawn(SHAPES[shape], FEATURES[name]).rounded(dtype), dtype)
        threads(1)
        want = given.all()
        for count in (2, 3, 8):
            threads(count)
            assert_all_same(given.all(), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["one head", "many"])
def test_every_run_gives_the_same_bits(shape, dtype, threads):
    """250 times on more threads than there are cores: a race would show some time."""
    features = {"causal": True, "mask": ("additive", "qk"), "dropout_p": 0.1}
    given = arrays(drawn(SHAPES[shape], features).rounded(dtype), dtype)
    threads(1)
    want = given.all()
    threads(8)
    for _ in range(250):
        assert_all_same(given.all(), want)


# --- the dropout mask ---------------------------------------------------------------------------------------
def kept_weights(shape, p, seed, offset, dtype, **options):
    """Which weights came through: queries of zeros weigh all keys alike, and the identity shows each on its own."""
    batch, heads, queries, keys = shape
    query = np.zeros((batch, heads, queries, 4), dtype)
    key = np.zeros((batch, heads, keys, 4), dtype)
    value = np.ascontiguousarray(np.broadcast_to(np.eye(keys, dtype=dtype), (batch, heads, keys, keys)))
    drops = {"dropout_p": p, "seed": seed, "offset": offset}
    out, lse = ops.attention(query, key, value, **drops, **options)
    # Of the backward pass: the gradient of the values shows the columns.
    grad_out = np.ascontiguousarray(np.broadcast_to(np.eye(queries, keys, dtype=dtype), out.shape))
    grads = ops.attention_backward(grad_out, query, key, value, out, lse, **drops, **options)
    return out != 0, np.swapaxes(grads[2], 2, 3)[:, :, : min(queries, keys)] != 0


SEEDS = ((0, 0), (2**64 - 1, 2**32 - 1), (0x0123456789ABCDEF, 77))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("seed", "offset"), SEEDS)
@pytest.mark.parametrize("p", [2.0**-16, 0.1, 0.5, 0.9999])
def test_the_mask_is_that_of_the_reference(p, seed, offset, dtype):
    for shape in ((2, 3, 5, 7), (1, 2, 70, 150), (2, 1, 129, 131)):
        want = reference.attention_keep(shape, p, seed=seed, offset=offset)
        forward, backward = kept_weights(shape, p, seed, offset, dtype)
        np.testing.assert_array_equal(forward, want)
        np.testing.assert_array_equal(backward, want[:, :, : backward.shape[2]])


def test_the_mask_does_not_depend_on_what_else_is_masked():
    shape = (2, 2, 80, 140)
    keep = reference.attention_keep(shape, 0.3, seed=5, offset=6)
    i, j = np.arange(80)[:, None], np.arange(140)
    for options, seen in (
        ({"causal": True}, j <= i),
        ({"causal": "bottom_right"}, j <= i + 60),
        ({"window": (9, 13)}, (j >= i - 9) & (j <= i + 13)),
        ({"key_lengths": np.array([77, 131])}, j < np.array([77, 131]).reshape(2, 1, 1, 1)),
    ):
        forward, _ = kept_weights(shape, 0.3, 5, 6, "float32", **options)
        np.testing.assert_array_equal(forward, keep & seen)


def test_how_many_weights_are_kept():
    """Within five standard deviations: of a million weights, one mask in two million would be off by more."""
    for p in (0.1, 0.5, 0.9):
        kept, _ = kept_weights((4, 16, 128, 128), p, 17, 3, "float32")
        assert abs(kept.mean() - (1 - p)) <= 5 * np.sqrt(p * (1 - p) / kept.size) + 2.0**-17


# --- instruction sets ---------------------------------------------------------------------------------------
def run_at(level, *arguments):
    """pytest at that level; skipped where this build or this CPU lacks it."""
    paths = [str(HERE.parent / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"FUSESTEP_SIMD": level, "PYTHONPATH": os.pathsep.join(paths)}
    probe = subprocess.run([sys.executable, "-c", "import fusestep"], env=environment, capture_output=True, text=True)
    if "expected a level that this CPU has" in probe.stderr:
        pytest.skip(f"this CPU has no {level}, or the operating system refuses it")
    if "FUSESTEP_SIMD: expected one of" in probe.stderr:
        pytest.skip(f"this build has no {level}")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *arguments], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-3000:]


# Scalar kernels are slow: one test of two, and all of them in `make exhaustive`.
def slow_level(level):
    return [pytest.param(level, 2, id=level), pytest.param(level, 1, id=f"{level}, all", marks=pytest.mark.exhaustive)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "one_of"),
    [*slow_level("scalar"), *((level, 1) for level in ("avx2", "avx512", "neon", "avx512_bf16", "amx_bf16"))],
)
def test_every_instruction_set_agrees_with_the_reference(level, one_of):
    """The tests of features and masks, run at that level."""
    if level == _core.info()["simd"]:
        return  # this very run
    chosen = "test_every_feature or test_head_dims or test_the_mask_is or test_which"
    files = ("test_attention_ops.py", "test_attention_bits.py", "test_masked_softmax.py", "test_dropout.py")
    run_at(level, "-k", chosen, *(str(HERE / name) for name in files), "-p", "one_of", f"--one-of={one_of}")


# The instructions, and where there are none what they compute.
BF16_LEVELS = ("avx512_bf16", "amx_bf16", "avx512_bf16_on_avx2", "amx_bf16_on_scalar")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "one_of"), [*((level, 1) for level in BF16_LEVELS[:-1]), *slow_level(BF16_LEVELS[-1])]
)
def test_bf16_products_agree_with_the_reference(level, one_of):
    run_at(level, str(HERE / "test_attention_bf16.py"), "-p", "one_of", f"--one-of={one_of}")


@pytest.mark.slow
@pytest.mark.parametrize("level", [*BF16_LEVELS[:-1], pytest.param(BF16_LEVELS[-1], marks=pytest.mark.exhaustive)])
def test_bf16_products_do_all_that_attention_does(level):
    """The tests of bfloat16 among those of all dtypes."""
    run_at(level, "-k", "bfloat16 or test_any_combination", str(HERE / "test_attention_ops.py"))
