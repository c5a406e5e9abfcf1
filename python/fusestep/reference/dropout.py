"""Dropout (Srivastava et al. 2014) whose mask is a pure function of the seed, the offset and the position.

One Philox call gives eight 16-bit numbers to eight neighbouring elements, the lower half of a word first. An element
whose number is below the threshold is dropped.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen
from .philox import Words, philox

GROUP = 8


def dropout_threshold(p: float) -> int:
    """p as a multiple of 2**-16: an element is dropped if its 16-bit number is below this."""
    return 65536 if p == 1 else min(math.floor(p * 65536 + 0.5), 65535)


def dropout_scale(p: float) -> float:
    """What survivors are multiplied by: 1 / (1 - p) for the rounded p, so that the expectation is exact. p = 1: there
    are none, and it is 0."""
    threshold = dropout_threshold(p)
    return 0.0 if threshold == 65536 else 65536 / (65536 - threshold)


def dropout_keep(numel: int, p: float, *, seed: int, offset: int = 0, first: int = 0) -> Array:
    """Which of the elements [first, first + numel) of an array, counted in C order, plain dropout keeps.

    The counter is (lower and upper word of element // 8, 0, offset).
    """
    groups = np.arange(first // GROUP, (first + numel + GROUP - 1) // GROUP, dtype=np.uint64)
    counter = (groups & np.uint64(0xFFFFFFFF), groups >> np.uint64(32), 0, offset)
    start = first % GROUP
    return (_numbers(philox(counter, seed)) >= dropout_threshold(p)).ravel()[start : start + numel]


def attention_keep(
    shape: tuple[int, int, int, int], p: float, *, seed: int, offset: int = 0, first_batch: int = 0
) -> Array:
    """Which weights attention of that (batch, heads, queries, keys) keeps.

    The counter is (key // 8, query, batch * heads + head, offset). `first_batch` is the number of the first batch: of a
    packed sequence, its place among the sequences.
    """
    batch, heads, queries, keys = shape
    batch_head = np.arange(first_batch * heads, (first_batch + batch) * heads).reshape(batch, heads, 1, 1)
    query = np.arange(queries).reshape(queries, 1)
    group = np.arange((keys + GROUP - 1) // GROUP)
    numbers = _numbers(philox((group, query, batch_head, offset), seed))
    return numbers.reshape(batch, heads, queries, group.size * GROUP)[..., :keys] >= dropout_threshold(p)


def dropout(x: ArrayLike, p: float, *, seed: int, offset: int = 0) -> Array:
    """x / (1 - p) where it is kept, else 0 (also where x is not finite)."""
    values = widen(x)
    keep = dropout_keep(values.size, p, seed=seed, offset=offset).reshape(values.shape)
    return np.where(keep, values * dropout_scale(p), 0.0)


def dropout_add(x: ArrayLike, residual: ArrayLike, p: float, *, seed: int, offset: int = 0) -> Array:
    """residual + dropout(x)."""
    return np.asarray(widen(residual) + dropout(x, p, seed=seed, offset=offset))


def _numbers(words: Words) -> Array:
    """The eight numbers of each Philox call, along a new last axis."""
    halves = [half for word in words for half in (word & np.uint64(0xFFFF), word >> np.uint64(16))]
    return np.stack(np.broadcast_arrays(*halves), axis=-1)
