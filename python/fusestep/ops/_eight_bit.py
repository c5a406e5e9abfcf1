"""Moments in 8 bits: what `state_dtype="8bit"` keeps, from float32 and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusestep import _core

from ._arrays import empty, shape_of


def quantize_8bit(values: Any, *, square: bool) -> tuple[Any, Any]:
    """Moments as codes of 8 bits and the scales of their blocks.

    Each block of 256 neighbours, in the order of memory, has its greatest absolute value as its scale. A code stands
    for a fraction of it: sixteen in each power of two at the top, eight further down, so that the relative error is at
    most 1/32 and 1/16 (`fusestep.reference.quantize_8bit` says which exactly). The range of signed moments ends at
    2**-11.75 of the scale; below it they become 0. That of squares ends at 2**-23.8, and nothing becomes 0.
    A block with an infinity or a NaN becomes NaN.

    Args:
        values: float32, NumPy array or torch tensor in CPU memory, C-contiguous, any shape.
        square: whether these are second moments: >= 0, codes without a sign and without a zero.

    Returns:
        Codes, uint8 of the shape of `values`, and scales, float32 of shape (ceil(values.size / 256),), of its kind.

    Raises:
        TypeError, ValueError: another array.
    """
    shape = shape_of(values)
    numel = int(np.prod(shape, dtype=np.int64))
    codes = empty("quantize_8bit", "values", shape, values, dtype="uint8")
    absmax = empty("quantize_8bit", "values", (-(-numel // 256),), values, dtype="float32")
    _core.quantize_8bit("quantize_8bit", values, codes, absmax, square)
    return codes, absmax


def dequantize_8bit(codes: Any, absmax: Any, *, square: bool) -> Any:
    """The float32 moments that `codes` and `absmax`, as `quantize_8bit` gives them, stand for.

    Args:
        codes: uint8, in CPU memory, C-contiguous, any shape.
        absmax: float32 of shape (ceil(codes.size / 256),).
        square: as for `quantize_8bit`.

    Raises:
        TypeError, ValueError: another array.
    """
    values = empty("dequantize_8bit", "codes", shape_of(codes), codes, dtype="float32")
    _core.dequantize_8bit("dequantize_8bit", values, codes, absmax, square)
    return values
