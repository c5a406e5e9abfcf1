"""A nested state (dicts, lists, tuples, numbers, tensors) as JSON and a flat table of tensors, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusestep._refusal import refuse

# What JSON has no word for is an object with one of these as its first key.
_TENSOR, _ARRAY, _TUPLE, _ITEMS, _FLOAT = "$tensor", "$array", "$tuple", "$items", "$float"


class Flattener:
    """Takes states apart: ``flatten`` returns the JSON, ``tensors`` collects the tensors by their path.

    A tensor that is met twice (tied weights) is stored once. Tensors are not copied, but for those that are not
    contiguous and those that share memory with another: a file holds each element once and in order.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._met: dict[tuple[Any, ...], str] = {}
        self._storages: set[tuple[str, int]] = set()

    def flatten(self, value: Any, path: str = "") -> Any:
        """The JSON form of ``value``. Raises TypeError, which names the path, for what is not plain data."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if isinstance(value, np.ndarray):
            return {_ARRAY: self._tensor(torch.from_numpy(value), path)}
        if isinstance(value, tuple):
            return {_TUPLE: [self.flatten(part, f"{path}.{i}") for i, part in enumerate(value)]}
        if isinstance(value, list):
            return [self.flatten(part, f"{path}.{i}") for i, part in enumerate(value)]
        if isinstance(value, Mapping):
            prefix = f"{path}." if path else ""
            parts = [(key, self.flatten(part, f"{prefix}{key}")) for key, part in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(parts)
            return {_ITEMS: [[self.flatten(key, f"{path} (key)"), part] for key, part in parts]}
        expected = "tensors, arrays, numbers, strings, None, and dicts, lists and tuples of them"
        refuse("checkpoint", f"'{path}'", expected, type(value).__name__, error=TypeError)

    def _tensor(self, tensor: Tensor, path: str) -> dict[str, Any]:
        tensor = tensor.detach()
        storage = (str(tensor.device), tensor.untyped_storage().data_ptr())
        place = (*storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        name = self._met.get(place) if tensor.numel() else None
        if name is None:
            name = path
            while name in self.tensors:  # {"a.b": x, "a": {"b": y}}
                name += "'"
            self._met[place] = name
            shared = storage in self._storages
            self._storages.add(storage)
            self.tensors[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
        strides = {} if tensor.is_contiguous() else {"stride": list(tensor.stride())}
        return {_TENSOR: name, **strides}


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``Flattener.flatten`` was given. Raises KeyError for a tensor that ``tensors`` has not."""
    if isinstance(value, list):
        return [unflatten(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        tensor = tensors[value[_TENSOR]]
        if "stride" not in value:
            return tensor
        return torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype).copy_(tensor)
    if _ARRAY in value:
        return unflatten(value[_ARRAY], tensors).numpy()
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _TUPLE in value:
        return tuple(unflatten(part, tensors) for part in value[_TUPLE])
    return dict(_items(value, tensors))


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, tensors included."""
    left, right = Flattener(), Flattener()
    if left.flatten(a) != right.flatten(b):
        return False
    return all(torch.equal(tensor, right.tensors[name]) for name, tensor in left.tensors.items())


def _items(value: dict[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
    for key, part in value[_ITEMS] if _ITEMS in value else value.items():
        yield unflatten(key, tensors), unflatten(part, tensors)
