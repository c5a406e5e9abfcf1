"""A dropout seed that lies in memory: read when the kernel runs, so that each replay of a graph finds another."""

from __future__ import annotations

import numpy as np
import problems
import pytest
import torch
from fusestep import ops
from problems import as_numpy, assert_same_bits

P, OFFSET = 0.4, 3
SHAPE = (2, 3, 5, 19)


def call_dropout(x, seed):
    return [ops.dropout(x, P, seed=seed, offset=OFFSET)]


def call_dropout_add(x, seed):
    return [ops.dropout_add(x, x, P, seed=seed, offset=OFFSET)]


def call_masked_softmax(x, seed):
    options = {"dropout_p": P, "seed": seed, "offset": OFFSET}
    out, lse = ops.masked_softmax(x, **options)
    return [out, lse, *ops.masked_softmax_backward(x, x, lse, **options)[:1]]


def call_attention(x, seed):
    options = {"dropout_p": P, "seed": seed, "offset": OFFSET}
    out, lse = ops.attention(x, x, x, **options)
    return [out, lse, *ops.attention_backward(x, x, x, x, out, lse, **options)[:3]]


CALLS = [call_dropout, call_dropout_add, call_masked_softmax, call_attention]
CALL = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.removeprefix("call_"))


@CALL
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_mask_of_what_lies_there(call, dtype, rng):
    x = problems.array(rng.standard_normal(SHAPE), dtype)
    memory = np.array(0, np.int64)
    results = []
    for number in (0, 7, 2**64 - 5):
        memory[...] = np.uint64(number).astype(np.int64)  # its 64 bits
        for got, want in zip(call(x, memory), call(x, number), strict=True):
            assert_same_bits(as_numpy(got), as_numpy(want))
        results.append(as_numpy(call(x, memory)[0]).tobytes())
    assert len(set(results)) == 3


@CALL
def test_of_torch(call):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    for got, want in zip(call(x, torch.tensor(11)), call(x, 11), strict=True):
        assert torch.equal(got, want)


@CALL
@pytest.mark.parametrize(
    "seed", [np.array(3, np.int32), np.array([3]), np.array(3.0)], ids=["int32", "one dimension", "a float"]
)
def test_what_is_no_seed(call, seed):
    with pytest.raises(TypeError, match=r"^\w+: seed: expected .*int64"):
        call(np.ones(SHAPE, np.float32), seed)
