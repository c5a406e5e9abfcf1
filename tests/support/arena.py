"""The memory of one call: all of its arrays lie in it, in any layout, and a byte that is touched beside them shows."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIZE = 1 << 20
FILLING = 0xA5
# The dtypes of results.
RESULTS = {getattr(torch, name): np.dtype(name) for name in ("float16", "float32", "float64", "uint8")}
RESULTS[torch.bfloat16] = BFLOAT16


class Arena:
    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.bytes = np.full(SIZE, FILLING, np.uint8)
        self.used = 0

    def strided(self, values: np.ndarray) -> np.ndarray:
        """The values, in a layout that is drawn: any order of axes, gaps, backwards, and at any aligned address."""
        draw, itemsize = self.draw, values.dtype.itemsize
        strides, reach, begin = [0] * values.ndim, 1, 0
        plain = draw.random() < 0.4
        axes = list(range(values.ndim))[::-1] if plain else draw.sample(range(values.ndim), values.ndim)
        for axis in axes:
            stride = reach if plain else reach + draw.choice((0, 0, 1, 3))
            reach = stride * max(values.shape[axis], 1)
            backwards = not plain and draw.random() < 0.15
            begin += stride * max(values.shape[axis] - 1, 0) if backwards else 0
            strides[axis] = -stride if backwards else stride
        start = -(-self.used // itemsize) * itemsize + itemsize * draw.randrange(9)
        self.used = start + reach * itemsize
        array = np.ndarray(
            values.shape, values.dtype, self.bytes, start + begin * itemsize, [s * itemsize for s in strides]
        )
        array[...] = values
        return array

    def contiguous(self, values: np.ndarray) -> np.ndarray:
        array = self.empty(values.shape, values.dtype)
        array[...] = values
        return array

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        start = -(-self.used // dtype.itemsize) * dtype.itemsize + dtype.itemsize * self.draw.randrange(9)
        self.used = start + math.prod(shape) * dtype.itemsize
        return np.ndarray(shape, dtype, self.bytes, start)

    def dense(self, values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """The values without gaps, with the axes in that order: the last is the one of neighbours."""
        return self.contiguous(values.transpose(axes)).transpose(sorted(range(values.ndim), key=axes.__getitem__))

    @contextlib.contextmanager
    def instead_of_empty(self) -> Iterator[list[np.ndarray]]:
        """Meanwhile results that are allocated lie here as well; yields them."""
        arrays: list[np.ndarray] = []
        of_numpy, of_torch = np.empty, torch.empty

        def has_room(shape: tuple[int, ...]) -> bool:
            return self.used + 8 * (math.prod(shape) + 16) <= SIZE

        def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            dtype = np.dtype(dtype)
            if dtype not in RESULTS.values() or not has_room(shape):
                return of_numpy(shape, dtype)
            arrays.append(self.empty(shape, dtype))
            return arrays[-1]

        def empty_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: Any = "cpu") -> torch.Tensor:
            if dtype not in RESULTS or str(device) != "cpu" or not has_room(shape):
                return of_torch(shape, dtype=dtype, device=device)
            return as_kind(empty(shape, RESULTS[dtype]), "torch")

        with mock.patch.object(np, "empty", empty), mock.patch.object(torch, "empty", empty_tensor):
            yield arrays


def as_kind(array: np.ndarray, kind: str) -> Any:
    """The same memory as an array of NumPy or of torch, which has no negative strides."""
    if kind == "numpy" or any(s < 0 for s in array.strides) or not array.dtype.isnative:
        return array
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_array(value: Any) -> np.ndarray | None:
    """The memory of a plain array or tensor as NumPy's array; None for everything else."""
    if isinstance(value, np.ndarray):
        return None if isinstance(value, np.ma.MaskedArray) else value.view(np.ndarray)
    plain = type(value) is torch.Tensor and value.layout is torch.strided and value.device.type == "cpu"
    if not plain or value.is_neg() or value._is_zerotensor() or value.dtype is torch.float8_e5m2:
        return None
    value = value.detach()
    return value.view(torch.int16).numpy().view(BFLOAT16) if value.dtype is torch.bfloat16 else value.numpy()
