"""What the operations need to know of arrays that the core does not: allocating results, telling autograd."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from fusestep._refusal import check_bool, refuse


def bump_versions(arrays: Iterable[Any]) -> None:
    """Tells autograd that these were changed: a backward that saved an earlier value then fails instead of lying."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    tensors = [a for a in arrays if isinstance(a, torch.Tensor) and not a.is_inference()]
    if tensors:
        torch.autograd.graph.increment_version(tensors)


def shape_of(array: Any) -> tuple[int, ...]:
    """() for what is no array: the core refuses it, and says how."""
    shape = getattr(array, "shape", ())
    return shape if isinstance(shape, tuple) else ()


def empty(
    operation: str,
    name: str,
    shape: tuple[int, ...],
    like: Any,
    *,
    dtype: str | None = None,
    for_sums: bool = False,
    plus: Any = None,
) -> Any:
    """A new array of the kind of `like`: of its device and dtype, or in CPU memory and of the dtype that is given.

    name: the argument that a refusal names: "out" or "lse" where that could be given instead, else that of `like`.
    for_sums: float64 for float64, float32 for the rest. plus: of the dtype of `like + plus`, if it has another dtype.
    """
    if plus is not None and getattr(plus, "dtype", None) == getattr(like, "dtype", None):
        plus = None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        torch_dtype = like.dtype if dtype is None else getattr(torch, dtype)
        # Of 8 bits and of no floats torch knows no sum; the core refuses them.
        if isinstance(plus, torch.Tensor) and all(
            d.is_floating_point and d.itemsize > 1 for d in (torch_dtype, plus.dtype)
        ):
            torch_dtype = torch.promote_types(torch_dtype, plus.dtype)
        if for_sums and torch_dtype != torch.float64:
            torch_dtype = torch.float32
        return torch.empty(shape, dtype=torch_dtype, device=like.device if dtype is None else "cpu")
    if isinstance(like, np.ndarray) or not hasattr(like, "__dlpack__"):
        numpy_dtype = like.dtype if dtype is None and isinstance(like, np.ndarray) else np.dtype(dtype or np.float32)
        if (
            isinstance(plus, np.ndarray)
            and np.can_cast(plus.dtype, np.float64)
            and np.can_cast(numpy_dtype, np.float64)
        ):
            # NumPy knows no sum of the two 16-bit floats of ml_dtypes and its own.
            numpy_dtype = np.promote_types(numpy_dtype, np.promote_types(plus.dtype, np.float32))
        if for_sums and numpy_dtype != np.float64:
            numpy_dtype = np.dtype(np.float32)
        return np.empty(shape, numpy_dtype)
    class_name = f"a {type(like).__module__}.{type(like).__qualname__}"
    expected, got = "a NumPy array or a torch tensor", class_name
    if name in ("out", "lse"):
        expected, got = f"an array to write to beside {class_name}", "None"
    refuse(operation, name, expected, got, "Results are allocated for NumPy arrays and torch tensors only.", TypeError)


def softmax_options(
    operation: str,
    mask: Any,
    causal: bool | str,
    window: tuple[int | None, int | None] | None,
    key_lengths: Any,
    scale: float | None,
    dropout_p: float,
    seed: int | Any | None,
    offset: int,
) -> tuple[Any, ...]:
    """What attention and the masked softmax share, in the order of ``_core``. Refuses dropout without a seed."""
    if seed is None and isinstance(dropout_p, (int, float)) and dropout_p > 0:
        refuse(
            operation,
            "seed",
            "an int beside a dropout probability above 0",
            "None",
            "The mask is a function of the arguments alone: choose a seed, and another one for each call.",
            TypeError,
        )
    return mask, causal, window, key_lengths, scale, dropout_p, seed, offset


def check_grad_mask(operation: str, wanted: bool, mask: Any) -> None:
    """Refuses to give a gradient of a mask that has none."""
    check_bool(operation, "grad_mask", wanted)
    if not wanted:
        return
    if mask is None or str(getattr(mask, "dtype", "")) in ("bool", "torch.bool"):
        got = "None" if mask is None else "a boolean one"
        refuse(operation, "mask", "an additive mask beside grad_mask=True", got, error=TypeError)
