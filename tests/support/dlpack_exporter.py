"""DLPack as no library exports it: any device, dtype, version and flags; any table of the C exchange API."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("version", Version),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


class ExchangeApi(ctypes.Structure):
    _fields_ = [
        ("version", Version),
        ("older", ctypes.c_void_p),
        ("managed_tensor_allocator", ctypes.c_void_p),
        ("managed_tensor_from_object", ctypes.c_void_p),
        ("managed_tensor_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_work_stream", ctypes.c_void_p),
    ]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Exporter:
    """Exports a contiguous array, with what the keywords say in the place of the truth.

    Keywords are fields of Tensor, `strides` (a tuple or None), `version`, `flags`, and `versioned=False` for
    the form before DLPack 1.0. The exporter must outlive its capsules.
    """

    def __init__(self, array: np.ndarray, *, versioned: bool = True, **changes: Any) -> None:
        self.array = array
        managed = ManagedTensorVersioned() if versioned else ManagedTensor()
        if versioned:
            managed.version = Version(*changes.pop("version", (1, 0)))
            managed.flags = changes.pop("flags", 0)
        self._shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        strides = changes.pop("strides", tuple(s // array.itemsize for s in array.strides))
        self._strides = None if strides is None else (ctypes.c_int64 * array.ndim)(*strides)
        bits = 8 * array.itemsize
        managed.tensor = Tensor(array.ctypes.data, 1, 0, array.ndim, 2, bits, 1, self._shape, self._strides)
        for field, value in changes.items():
            setattr(managed.tensor, field, value)
        self._managed = managed
        self._name = b"dltensor_versioned" if versioned else b"dltensor"

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> object:
        return _new_capsule(ctypes.addressof(self._managed), self._name, None)


_tables: list[ExchangeApi] = []  # they live as long as the process, as the specification wants it


def exchange_api(
    of: type,
    *,
    version: tuple[int, int],
    has_older: bool = False,
    can_read: bool = True,
    name: bytes = b"dlpack_exchange_api",
) -> object:
    """A capsule with a table like that of the type `of`, in another version.

    `has_older`: it leads on to the true one. `can_read=False`: it lacks the function that only borrows.
    """
    address = _capsule_pointer(of.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    table = ExchangeApi.from_buffer_copy((ctypes.c_char * ctypes.sizeof(ExchangeApi)).from_address(address))
    table.version = Version(*version)
    table.older = address if has_older else None
    if not can_read:
        table.tensor_from_object = None
    _tables.append(table)
    # A name that lives as long as the capsule.
    table.kept_name = ctypes.create_string_buffer(name)
    return _new_capsule(ctypes.addressof(table), ctypes.cast(table.kept_name, ctypes.c_char_p), None)
