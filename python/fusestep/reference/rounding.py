"""Rounding to 16-bit floats: stochastic, and as a sum of two. The specification of `rounding` in fusestep.ops."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array
from .philox import philox

STREAM = 0x9D3F6C1B5A2E8047

# Bits of the mantissa, the leading one included; the least exponent of a normal number.
FORMATS = {"bfloat16": (8, -126), "float16": (11, -14)}


def rounding_numbers(shape: tuple[int, ...], *, seed: int, parameter: int, step: int) -> Array:
    """The 16 random bits of each element in one step: integers from 0 to 65535, of the given shape.

    Elements are counted in C order. Eight neighbours share a Philox call with the counter
    (lower and upper word of element // 8, parameter, step modulo 2**32) and the key seed ^ STREAM.
    """
    element = np.arange(math.prod(shape), dtype=np.uint64)
    group = element // np.uint64(8)
    words = philox((group & np.uint64(0xFFFFFFFF), group >> np.uint64(32), parameter, step % 2**32), seed ^ STREAM)
    halves = np.stack([words[i // 2] >> np.uint64(16 * (i % 2)) & np.uint64(0xFFFF) for i in range(8)])
    numbers: Array = halves[(element % np.uint64(8)).astype(np.int64), np.arange(element.size)].reshape(shape)
    return numbers


def state_numbers(numbers: ArrayLike, state: int) -> Array:
    """The bits that round state tensor `state` (0, 1, ...) of the parameter: those of the parameter, rotated."""
    by = np.uint64(5 * (state + 1))
    number = np.asarray(numbers, np.uint64)
    rotated: Array = (number << by | number >> (np.uint64(16) - by)) & np.uint64(0xFFFF)
    return rotated


def round_stochastic(values: ArrayLike, numbers: ArrayLike, dtype: str) -> Array:
    """float32 values rounded to one of their two neighbours in `dtype` ("bfloat16" or "float16"), as float64.

    The one away from zero is taken where fraction + number / 2**16 >= 1, with the fraction of the distance between the
    neighbours that lies below |value|, cut to 16 bits; for normal float16 fraction and number are cut to 13 bits, all
    that float32 has between two neighbours. Values without two finite neighbours are rounded to the nearest.
    """
    x = np.asarray(values, np.float32).astype(np.float64)
    bits, least = FORMATS[dtype]
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(x)
        unit = np.ldexp(1.0, np.maximum(exponent - 1, least) - (bits - 1))
        lower = np.floor(np.abs(x) / unit)
        kept = np.where((dtype == "float16") & (exponent - 1 >= least), 13, 16)
        fraction = np.floor((np.abs(x) / unit - lower) * 2.0**kept)
        number = np.floor(np.asarray(numbers, np.float64) / 2.0 ** (16 - kept))
        rounded = np.copysign((lower + (fraction + number >= 2.0**kept)) * unit, x)
    largest = (2.0 - 2.0 ** (1 - bits)) * 2.0 ** (127 if dtype == "bfloat16" else 15)
    return np.where(np.isfinite(x), np.where(np.abs(rounded) > largest, np.copysign(np.inf, x), rounded), x)
