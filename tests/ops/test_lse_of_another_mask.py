"""A backward pass is given the log-sum-exps by the caller: those of another mask give wrong gradients, and no more.

Rows without keys then look as if they had some. Nothing may be written beside the gradients.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from arena import FILLING, Arena
from fusestep import ops

MASKS = [
    {"window": (0, 0)},
    {"window": (2, 1)},
    {"window": (0, None), "causal": "bottom_right"},
    {"causal": "bottom_right"},
    {"causal": True, "window": (1, None)},
    {"key_lengths": np.array([0], np.int64)},
    {"key_lengths": np.array([1], np.int64), "window": (0, 0)},
]
SIZES = [(9, 1), (40, 3), (3, 40), (70, 33), (300, 17)]


def assert_writes_no_more_than_results(call):
    arena = Arena(random.Random(1))
    before = arena.bytes.copy()
    with arena.instead_of_empty() as results:
        call()
    assert results
    for array in results:
        array.reshape(-1).view(np.uint8)[...] = FILLING
    assert np.array_equal(arena.bytes, before)


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_masked_softmax(mask, queries, keys, rng):
    scores = rng.standard_normal((1, 1, queries, keys)).astype(np.float32)
    _, lse = ops.masked_softmax(scores)
    additive = np.zeros((queries, keys), np.float32)
    assert_writes_no_more_than_results(
        lambda: ops.masked_softmax_backward(scores, scores, lse, mask=additive, grad_mask=True, **mask)
    )


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_attention(mask, queries, keys, rng):
    query, key = (rng.standard_normal((1, 1, n, 8)).astype(np.float32) for n in (queries, keys))
    out, lse = ops.attention(query, key, key)
    additive = np.zeros((queries, keys), np.float32)
    assert_writes_no_more_than_results(
        lambda: ops.attention_backward(query, query, key, key, out, lse, mask=additive, grad_mask=True, **mask)
    )
