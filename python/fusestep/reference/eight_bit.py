"""Moments in 8 bits: the specification of `state_dtype="8bit"`.

A block is 256 neighbours in the order of memory. It has one scale, its greatest absolute value, and each element has a
code for a fraction of it (blocks and a floating code as in Dettmers et al., arXiv:2110.02861; this code is another).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array

BLOCK = 256
LEAST_SCALE = 2.0**-126  # the least normal float32: the inverse of it is finite


def _fractions(square: bool) -> Array:
    """The fraction of every code from the least to 1, float64; of signed moments those of the magnitudes.

    Downwards from 1 there are 16 steps in each power of two for the upper half of the codes, then 8. The first one
    of signed moments stands for 0: rounding knows it as one step below the least.
    """
    upper, lower = (128, 127) if square else (64, 63)
    steps = [2.0 ** -(1 + i // 16) * (2 - (i % 16 + 1) / 16) for i in range(upper)]
    meets = steps[-1]
    steps += [meets * 2.0 ** -(1 + i // 8) * (2 - (i % 8 + 1) / 8) for i in range(lower)]
    return np.array([1.0, *steps][::-1])


def quantize_8bit(values: ArrayLike, *, square: bool) -> tuple[Array, Array]:
    """Codes (uint8, of the shape of `values`) and scales (float32, one for each block) of float32 values.

    Each fraction gets the code of the nearest one, the greater of two that are as near. square: values >= 0, without
    a code for 0; else bit 7 is the sign, and code 0 stands for 0. A block with an infinity or a NaN becomes NaN.
    """
    x = np.asarray(values, np.float32)
    flat = x.ravel()
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK), np.float32)
    blocks.ravel()[: flat.size] = flat
    magnitude = np.abs(blocks)
    scale = np.maximum(magnitude.max(axis=1, initial=0.0), np.float32(LEAST_SCALE))
    finite = np.isfinite(scale)
    scale = np.where(finite, scale, np.float32(np.nan)).astype(np.float32)
    inverse = np.float32(1) / scale[:, None]
    fractions = _fractions(square)
    with np.errstate(all="ignore"):
        parts = (magnitude * inverse).astype(np.float64)
    codes = np.searchsorted((fractions[1:] + fractions[:-1]) / 2, parts, side="right").astype(np.uint8)
    if not square:
        codes |= np.signbit(blocks).astype(np.uint8) << 7
    codes[~finite] = 255 if square else 127
    return codes.ravel()[: flat.size].reshape(x.shape), scale


def dequantize_8bit(codes: ArrayLike, absmax: ArrayLike, *, square: bool) -> Array:
    """The float32 values that codes stand for: the fraction times the scale of the block, rounded once."""
    code = np.asarray(codes, np.uint8)
    fractions = _fractions(square)
    if not square:
        fractions[0] = 0.0
        fractions = np.concatenate([fractions, -fractions])
    scale = np.repeat(np.asarray(absmax, np.float32), BLOCK)[: code.size].reshape(code.shape)
    values: Array = fractions[code].astype(np.float32) * scale
    return values
