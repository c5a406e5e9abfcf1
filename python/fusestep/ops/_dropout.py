"""Dropout, and dropout with a residual added."""

from __future__ import annotations

from typing import Any

from fusestep import _core

from ._arrays import bump_versions, empty, shape_of


def dropout(x: Any, p: float, *, seed: int | Any, offset: int = 0, out: Any = None) -> Any:
    """Drops each element with probability p and scales the others by 1 / (1 - p).

    Element i, counted in C order whatever the layout, is kept or dropped by Philox4x32-7 at the counter
    (i // 8, 0, offset) under the key `seed`: `fusestep.reference.dropout` is the rule in full. The mask is never
    stored. The backward pass is the same function on the gradient, with the same p, seed and offset.

    Args:
        x: float64, float32, bfloat16 or float16; any shape and layout.
        p: in [0, 1]; rounded to a multiple of 2**-16, and survivors are scaled for the rounded one. 1 gives zeros.
        seed: 0 to 2**64 - 1; or a 0-dim int64 array on the device of x, whose 64 bits are read when the kernel runs.
        offset: 0 to 2**32 - 1: tells apart calls that share a seed.
        out: where to write; it may be x itself. Default: a new array.

    Returns:
        out. What is dropped is 0 even where x is not finite.

    Raises:
        TypeError, ValueError: an argument that cannot be taken. Nothing has been written then.
    """
    written = empty("dropout", "out", shape_of(x), x) if out is None else out
    _core.dropout("dropout", x, written, p, seed, offset)
    if out is not None:
        bump_versions([out])
    return written


def dropout_add(x: Any, residual: Any, p: float, *, seed: int | Any, offset: int = 0, out: Any = None) -> Any:
    """residual + dropout(x), in one pass and rounded once.

    The gradient of x is `dropout` of the gradient with the same p, seed and offset; that of the residual is the
    gradient itself.

    Args:
        x, p, seed, offset: as of `dropout`.
        residual: an array of the shape of x. Its dtype may differ: the sum has float64 beside float64, else float32.
        out: where to write; it may be x or residual. Default: a new array.
    """
    written = empty("dropout_add", "out", shape_of(x), x, plus=residual) if out is None else out
    _core.dropout_add("dropout_add", x, residual, written, p, seed, offset)
    if out is not None:
        bump_versions([out])
    return written
