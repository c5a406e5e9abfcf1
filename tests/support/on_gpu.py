"""A pytest plugin that does fusestep._core's work on a CUDA device: arrays go there, and their memory comes back.

So the tests written for the CPU run on the device unchanged:
`PYTHONPATH=tests/support python -m pytest -p on_gpu tests/ops/test_norm_clip.py`. test_gpu.py does so.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

# Read by the host wherever the other arrays are.
ON_HOST = ("key_lengths", "cu_seqlens_q", "cu_seqlens_k")


class Trip:
    """The arrays of one call: equal memory for equal memory, so that overlaps stay what they are."""

    def __init__(self):
        self.storages = {}

    def go(self, value, key=None):
        import torch

        if key in ON_HOST:
            return value
        if isinstance(value, np.ndarray):
            if any(stride < 0 for stride in value.strides) or not value.flags.writeable:
                pytest.skip("torch has no negative strides and no read-only memory")
            value = torch.from_numpy(value)
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu" or value.layout != torch.strided:
                return value
            storage = value.untyped_storage()
            if storage.data_ptr() not in self.storages:
                self.storages[storage.data_ptr()] = (storage, storage.cuda())
            there = torch.empty(0, dtype=value.dtype, device="cuda")
            moved = self.storages[storage.data_ptr()][1]
            return there.set_(moved, value.storage_offset(), value.shape, value.stride())
        if isinstance(value, dict):
            return {k: self.go(v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.go(v) for v in value)
        return value

    def come_back(self):
        for here, there in self.storages.values():
            here.copy_(there)


def on_device(function):
    @functools.wraps(function)
    def call(*arguments):
        trip = Trip()
        if function.__name__ == "optimizer_step":
            operation, name, groups, *rest = arguments
            # The options and the step counts of a group stay.
            moved = [(g[0], *trip.go(tuple(g[1:4])), g[4]) for g in groups]
            arguments = (operation, name, moved, *rest)
        else:
            arguments = trip.go(arguments)
        try:
            return function(*arguments)
        finally:
            trip.come_back()

    return call


def pytest_configure(config):
    from fusestep import _core

    for name in (
        "optimizer_step",
        "grad_norm",
        "clip_grad_norm_",
        "clip_grad_value_",
        "dropout",
        "dropout_add",
        "masked_softmax_forward",
        "masked_softmax_backward",
    ):
        setattr(_core, name, on_device(getattr(_core, name)))
