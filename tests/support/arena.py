"""The memory of one call: all of its arrays lie in it, in any layout, and a byte that is touched beside them shows."""

from __future__ import annotations

import random
from typing import Any

import ml_dtypes
import numpy as np
import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIZE = 1 << 20
FILLING = 0xA5


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
        itemsize = values.dtype.itemsize
        start = -(-self.used // itemsize) * itemsize + itemsize * self.draw.randrange(9)
        self.used = start + values.nbytes
        array = np.ndarray(values.shape, values.dtype, self.bytes, start)
        array[...] = values
        return array


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
