"""Arguments that nobody means, refused like all others: what tools/fuzz.py found, and a small run of it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from dlpack_exporter import Exporter
from fusestep import _core, ops

ROOT = Path(__file__).parents[2]
ONES = np.ones((2, 3), np.float32)
NO_UTF_8 = "\ud800"


def test_random_calls():
    command = [sys.executable, ROOT / "tools/fuzz.py", "--calls", "400", "--processes", "1", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- capsules ---------------------------------------------------------------------------------------------------
def with_sizes(*sizes, **changes):
    return Exporter(ONES, shape=(ctypes.c_int64 * len(sizes))(*sizes), **changes)


@pytest.mark.parametrize("strides", [None, (3, 1)])
@pytest.mark.parametrize(
    "sizes", [(2**62, 2**62), (2**32, 2**32), (-1, 3), (3, -1), (-(2**63), -1), (2**63 - 1, 2), (0, -1), (0, 2**63 - 1)]
)
def test_sizes_that_no_memory_has(sizes, strides):
    expected = r"^grad_norm: grads\[0\]: expected sizes and strides of at most .*, got shape \("
    with pytest.raises(ValueError, match=expected):
        ops.grad_norm([with_sizes(*sizes, strides=strides)])


@pytest.mark.parametrize("strides", [(2**63 - 1, 1), (-(2**63), 1), (2**62, 2**62), (1, -(2**63))])
def test_strides_that_no_memory_has(strides):
    with pytest.raises(ValueError, match=r"^grad_norm: grads\[0\]: expected sizes and strides of at most "):
        ops.grad_norm([Exporter(ONES, strides=strides)])


@pytest.mark.parametrize("ndim", [-1, -(2**31), 65, 2**31 - 1])
def test_numbers_of_dimensions_that_no_array_has(ndim):
    expected = rf"^grad_norm: grads\[0\]: expected a shape of 0 to 64 dimensions, got {ndim} dimensions"
    with pytest.raises(ValueError, match=expected):
        ops.grad_norm([Exporter(ONES, ndim=ndim)])


def test_a_capsule_without_a_shape():
    with pytest.raises(ValueError, match=r"^grad_norm: grads\[0\]: expected a shape of .*, got none"):
        ops.grad_norm([Exporter(ONES, shape=None)])


def test_an_empty_array_without_memory_has_no_address():
    assert _core.read_tensors([Exporter(ONES[:0], data=None, byte_offset=4)]) == 1


# --- options ----------------------------------------------------------------------------------------------------
def call(name):
    """The arguments of one that works."""
    codes, absmax = ops.quantize_8bit(ONES, square=True)
    square = np.ones((1, 1, 3, 3), np.float32)
    return {
        "quantize_8bit": {"values": ONES, "square": True},
        "dequantize_8bit": {"codes": codes, "absmax": absmax, "square": True},
        "cross_entropy": {"logits": ONES.copy(), "labels": np.zeros(2, np.int64)},
        "clip_grad_norm_": {"grads": [ONES.copy()], "max_norm": 1.0},
        "attention": {"query": square, "key": square, "value": square},
        "attention_backward": dict.fromkeys(("grad_out", "query", "key", "value", "out"), square)
        | {"lse": square[..., 0]},
        "masked_softmax_backward": {"grad_out": ONES, "scores": ONES, "lse": ONES[:, 0].copy()},
        "dropout_add": {"x": ONES, "residual": ONES, "p": 0.1, "seed": 1},
        "adamw_": {"params": [], "grads": [], "exp_avgs": [], "exp_avg_sqs": [], "step": 1},
    }[name]


@pytest.mark.parametrize(
    ("operation", "argument", "wrong", "error"),
    [
        ("quantize_8bit", "square", "yes", TypeError),
        ("quantize_8bit", "square", np.ones(2), TypeError),
        ("dequantize_8bit", "square", 1, TypeError),
        ("cross_entropy", "ignore_index", "0", TypeError),
        ("cross_entropy", "ignore_index", 0.5, TypeError),
        ("cross_entropy", "ignore_index", 2**64, ValueError),
        ("cross_entropy", "reduction", np.ones(2), ValueError),
        ("cross_entropy", "reduction", NO_UTF_8, ValueError),
        ("clip_grad_norm_", "error_if_nonfinite", np.ones(2), TypeError),
        ("attention", "causal", NO_UTF_8, ValueError),
        ("attention_backward", "grad_mask", np.ones(2), TypeError),
        ("masked_softmax_backward", "grad_mask", torch.ones(2), TypeError),
        ("dropout_add", "residual", np.zeros((2, 3), "S3"), TypeError),
        ("dropout_add", "residual", np.zeros((2, 3), "M8[s]"), TypeError),
        ("dropout_add", "residual", np.zeros((2, 3), ml_dtypes.float8_e5m2), TypeError),
        ("adamw_", "decay", NO_UTF_8, ValueError),
        ("adamw_", "rounding", NO_UTF_8, ValueError),
        ("adamw_", "on_nonfinite", NO_UTF_8, ValueError),
    ],
)
def test_options_of_another_kind(operation, argument, wrong, error):
    good = call(operation)
    getattr(ops, operation)(**good)
    with pytest.raises(error, match=rf"(?s)^{operation}: {argument}: expected .+, got ."):
        getattr(ops, operation)(**good | {argument: wrong})


def test_a_residual_of_8_bits_of_torch():
    x = torch.ones(3)
    with pytest.raises(TypeError, match=r"^dropout_add: residual: expected .+, got float8_e5m2"):
        ops.dropout_add(x, x.to(torch.float8_e5m2), 0.1, seed=1)


def test_a_shape_that_is_none():
    class Odd:
        shape = 3

    for operation, argument in (("quantize_8bit", "values"), ("attention", "query")):
        with pytest.raises(TypeError, match=rf"^{operation}: {argument}: expected .+, got "):
            getattr(ops, operation)(**call(operation) | {argument: Odd()})


@pytest.mark.parametrize("wrong", [5, True, "x"], ids=type)
def test_a_state_that_the_options_leave_out_is_no_list(wrong):
    """It came to light after the step only: the parameters had changed."""
    params = [np.ones(3)]
    with pytest.raises(TypeError, match=r"^rmsprop_: momentum_buffers: expected a list of arrays, got "):
        ops.rmsprop_(params, [np.ones(3)], [np.zeros(3)], step=1, momentum_buffers=wrong)
    np.testing.assert_array_equal(params[0], 1)
