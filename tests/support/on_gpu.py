"""A pytest plugin that does fusestep._core's work on a CUDA device: arrays go there, and their memory comes back.

So the tests written for the CPU run on the device unchanged:
`PYTHONPATH=tests/support python -m pytest -p on_gpu tests/ops/test_norm_clip.py`. test_gpu.py does so.
"""

from __future__ import annotations

import ctypes
import functools
import os

import numpy as np
import pytest

# "cpu": the plugin itself is tried on a machine without a device.
DEVICE = os.environ.get("FUSESTEP_TEST_DEVICE", "cuda")
# "device": attention's lengths and offsets go there too. The host cannot check them then.
LENGTHS = os.environ.get("FUSESTEP_TEST_LENGTHS", "host")


def whole_memory(array):
    """(address, bytes) of the memory that a NumPy array is a view of: two views of one array have the same."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    low, high = np.lib.array_utils.byte_bounds(array)
    return low, np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))


class Trip:
    """The arrays of one call. Equal memory goes to equal memory, so that overlaps stay what they are."""

    def __init__(self, integers_go):
        self.integers_go = integers_go
        self.memory = {}  # address: (bytes here, bytes there)

    def there(self, address, make_bytes):
        import torch

        if address not in self.memory:
            here = make_bytes()
            self.memory[address] = (here, torch.empty_like(here, device=DEVICE).copy_(here))
        return self.memory[address][1]

    def view(self, there, dtype, offset_bytes, shape, strides):
        import torch

        if offset_bytes % dtype.itemsize:
            pytest.skip("torch has no tensors at addresses that are not multiples of their elements")
        moved = torch.empty(0, dtype=dtype, device=there.device)
        return moved.set_(there.untyped_storage(), offset_bytes // dtype.itemsize, shape, strides)

    def go(self, value):
        import torch

        if isinstance(value, np.ndarray):
            if value.dtype.kind == "i" and not self.integers_go:
                return value
            if any(stride < 0 for stride in value.strides) or not value.flags.writeable:
                pytest.skip("torch has no negative strides and no read-only memory")
            address, flat = whole_memory(value)
            there = self.there(address, lambda: torch.from_numpy(flat))
            as_torch = torch.from_numpy(value)
            offset = value.__array_interface__["data"][0] - address
            return self.view(there, as_torch.dtype, offset, as_torch.shape, as_torch.stride())
        if isinstance(value, torch.Tensor):
            is_integer = value.dtype in (torch.int32, torch.int64)
            if value.device.type != "cpu" or value.layout != torch.strided or (is_integer and not self.integers_go):
                return value
            storage = value.untyped_storage()
            there = self.there(storage.data_ptr(), lambda: torch.empty(0, dtype=torch.uint8).set_(storage))
            offset = value.storage_offset() * value.dtype.itemsize
            return self.view(there, value.dtype, offset, value.shape, value.stride())
        if isinstance(value, dict):
            return {k: self.go(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.go(v) for v in value)
        return value

    def come_back(self):
        for here, there in self.memory.values():
            here.copy_(there)


def home(result):
    """What a call has returned: new tensors come back from the device."""
    if isinstance(result, tuple):
        return tuple(map(home, result))
    return result.cpu() if hasattr(result, "cpu") else result


def on_device(function):
    # The masked softmax reads its lengths in CPU memory, cross-entropy its labels on the device.
    name = function.__name__
    integers_go = name == "cross_entropy" or (LENGTHS == "device" and "attention" in name)

    @functools.wraps(function)
    def call(*arguments):
        trip = Trip(integers_go)
        if name == "optimizer_step":
            operation, optimizer, groups, *rest = arguments
            # The options, the step counts and the positions of a group stay.
            moved = [(g[0], *trip.go(tuple(g[1:4])), g[4], trip.go(g[5]), g[6]) for g in groups]
            arguments = (operation, optimizer, moved, *rest)
        else:
            arguments = trip.go(arguments)
        try:
            return home(function(*arguments))
        finally:
            trip.come_back()

    return call


def pytest_configure(config):
    import tolerances
    from fusestep import _core

    tolerances.WEIGHTS_ARE_STORED = {"float16", "bfloat16"}
    for name in (
        "optimizer_step",
        "grad_norm",
        "clip_grad_norm_",
        "clip_grad_value_",
        "dropout",
        "dropout_add",
        "cross_entropy",
        "masked_softmax_forward",
        "masked_softmax_backward",
        "attention",
        "attention_forward",
        "attention_backward",
    ):
        setattr(_core, name, on_device(getattr(_core, name)))
