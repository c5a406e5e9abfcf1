"""What may come in the place of an argument: other types, numbers out of range, arrays that cannot be taken."""

from __future__ import annotations

import ctypes
import inspect
import math
import random
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from arena import BFLOAT16, Arena, as_array
from dlpack_exporter import Exporter
from drawing import Call
from fusestep import ops


class Raises:
    """An array whose library refuses to export it."""

    shape, dtype = (3,), np.dtype("float32")

    def __dlpack__(self, **_: Any) -> object:
        raise BufferError("it is elsewhere")


class ReturnsNone(Raises):
    def __dlpack__(self, **_: Any) -> object:
        return None


class OddShape(Raises):
    shape = 3  # type: ignore[assignment]


class NoNumber:
    def __float__(self) -> float:
        raise ValueError("no number")

    __index__ = __float__  # type: ignore[assignment]


class Array(np.ndarray):
    """A subclass of NumPy's array."""


NUMBERS = (-1, 0, 1, 2, 7, 256, 257, 2**31, 2**32, 2**63, 2**64, -(2**63), -(2**70), 2**2000)
NUMBERS += (0.5, -0.5, 1.5, 1e300, -0.0, math.nan, math.inf, -math.inf, True, False)  # type: ignore[assignment]
OTHERS = (None, "", "x", "top_left", "mean", "kahan", "stochastic", b"x", [], (), {}, [1.0], [None], (1, 2), (-1, 3))
OTHERS += ((0.9, 2.0), [0.1, 0.2], 1j, object(), int, len, NoNumber(), Raises(), ReturnsNone(), OddShape())
OTHERS += (np.float32(1), np.int64(3), np.bool_(True), slice(3), range(3), "\ud800", "x" * 5000)
DTYPES = ("bool", "int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64", "longdouble")
DTYPES += ("complex64", ">f4", "S3", "U2", "O", "M8[s]", "m8[s]", "V3", [("a", "f4"), ("b", "u1")])  # type: ignore[assignment]
DTYPES += (ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4)  # type: ignore[assignment]
SHAPES = ((), (0,), (1,), (3,), (257,), (2, 0), (0, 3), (1, 1, 1, 1), (2, 3, 5, 7), (1,) * 32)
CHANGES: tuple[dict[str, Any], ...] = (
    {"device_type": 2},
    {"device_type": 8},
    {"device_type": -1},
    {"device_type": 2, "device_index": -5},
    {"code": 0},
    {"code": 99},
    {"bits": 0},
    {"bits": 255},
    {"lanes": 0},
    {"lanes": 4},
    {"data": None},
    {"byte_offset": 1},
    {"ndim": -1},
    {"ndim": -(2**31)},
    {"ndim": 2**31 - 1},
    {"ndim": 0},
    {"version": (0, 0)},
    {"version": (2, 0)},
    {"version": (1, 2**32 - 1)},
    {"flags": 1},
    {"flags": 2},
    {"flags": 2**64 - 1},
    {"versioned": False},
    {"strides": None},
)


# Of shape (2, 3): more elements or longer ways than there are addresses, or fewer elements than none.
IMPOSSIBLE_SIZES = (
    (2**62, 2**62),
    (-1, 3),
    (3, -1),
    (-(2**63), -1),
    (2**63 - 1, 2),
    (2**32, 2**32),
    (0, -1),
    (0, 2**63 - 1),
)
IMPOSSIBLE_STRIDES = ((2**63 - 1, 1), (-(2**63), 1), (2**62, 2**62), (1, -(2**63)))


def capsule(draw: random.Random) -> Exporter:
    """A capsule that says what cannot be, or what hardly anybody says."""
    memory = np.ones(24, draw.choice(("float32", "float64", "float16", "int64", "uint8")))
    values, kind = memory[:6].reshape(2, 3), draw.randrange(4)
    if kind == 0:
        return Exporter(values, shape=None)
    if kind == 1:
        sizes = (ctypes.c_int64 * 2)(*draw.choice(IMPOSSIBLE_SIZES))
        return Exporter(values, shape=sizes, strides=draw.choice((None, (3, 1))))
    if kind == 2:
        return Exporter(values, strides=draw.choice(IMPOSSIBLE_STRIDES))
    return Exporter(values, **draw.choice(CHANGES))


def tensor(draw: random.Random) -> torch.Tensor:
    kind = draw.randrange(9)
    if kind == 0:
        return torch.eye(3).to_sparse()
    if kind == 1:
        return torch.ones(3, device="meta")
    if kind == 2:
        return torch._efficientzerotensor(3)
    if kind == 3:
        return torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
    if kind == 4:
        return torch.ones(3, dtype=draw.choice((torch.int64, torch.bool, torch.complex64, torch.float8_e5m2)))
    if kind == 5:
        return torch.zeros(1).expand(draw.choice(((3,), (2, 3))))
    if kind == 6:
        return torch.empty(0).as_strided((0, 257), (2**40, 1))
    if kind == 7:
        return torch.frombuffer(bytearray(17), dtype=torch.float32, count=4, offset=1)
    return torch.ones(2, 3, requires_grad=True).t()


def array(draw: random.Random) -> np.ndarray:
    dtype = np.dtype(draw.choice(DTYPES))
    return np.zeros(draw.choice(SHAPES), dtype)


def like(draw: random.Random, old: np.ndarray, arena: Arena) -> np.ndarray:
    """Another view of the memory of an array, or an array like it with one thing wrong."""
    kind = draw.randrange(9)
    if kind == 0:
        return old[None]
    if kind == 1:
        return old.T
    if kind == 2 and old.ndim:
        return old[..., :-1]
    if kind == 3:
        view = old.view()
        view.flags.writeable = False
        return view
    if kind == 4 and old.ndim:
        return np.lib.stride_tricks.as_strided(old, old.shape, (0,) * old.ndim)
    if kind == 5:  # a byte beside its elements
        start = arena.used + 1 + (arena.used & 1)
        arena.used = start + old.nbytes
        return np.ndarray(old.shape, old.dtype, arena.bytes, start)
    if kind == 6 and old.ndim and 0 not in old.strides:  # overlapping itself
        arena.used += old.nbytes  # it may reach so far beyond
        return np.lib.stride_tricks.as_strided(old, old.shape, (old.itemsize,) * old.ndim)
    if kind == 7:
        return np.ma.array(old) if draw.random() < 0.5 else old.view(Array)
    return old.astype(draw.choice(("float32", "float64", "float16", "int64", "uint8", "bool", BFLOAT16)))


def shared(draw: random.Random, old: np.ndarray, call: Call) -> np.ndarray | None:
    """An array like it whose memory begins within that of another argument; None where there is no room for it."""
    arrays = [as_array(value) for value in arrays_of(call, call.arguments)]
    starts = [a.ctypes.data - call.arena.bytes.ctypes.data for a in arrays if np.shares_memory(a, call.arena.bytes)]
    start = draw.choice(starts or [0]) + old.itemsize * draw.randrange(old.size + 1)
    start -= start % old.itemsize
    if not 0 <= start <= call.arena.bytes.size - old.nbytes:
        return None
    call.arena.used = max(call.arena.used, start + old.nbytes)
    return np.ndarray(old.shape, old.dtype, call.arena.bytes, start)


def thing(draw: random.Random, call: Call, old: Any) -> Any:
    kind = draw.randrange(9)
    memory = as_array(old)
    if kind <= 1:
        return draw.choice(NUMBERS)
    if kind == 2:
        return draw.choice(OTHERS)
    if kind == 3:
        return capsule(draw)
    if kind == 4:
        return tensor(draw)
    if kind == 5 or memory is None or memory.dtype.char not in "efdilBE":
        return array(draw)
    if kind == 6:
        return draw.choice(arrays_of(call, call.arguments))
    if kind == 7:
        return shared(draw, memory, call)
    return like(draw, memory, call.arena)


def arrays_of(call: Call, names: Iterable[str]) -> list[Any]:
    """The arrays among those arguments of a call, in lists too."""
    given = [call.arguments.get(name) for name in names]
    return [v for value in given for v in (value if isinstance(value, list) else [value]) if as_array(v) is not None]


def spoil(draw: random.Random, call: Call) -> None:
    """Puts something in the place of one argument or of one element of a list, leaves one out, or gives one more."""
    kind = draw.random()
    if kind < 0.05 or not call.arguments:
        add(draw, call)
    elif kind < 0.1:
        del call.arguments[draw.choice(tuple(call.arguments))]
    else:
        replace(draw, call)


def add(draw: random.Random, call: Call) -> None:
    """An argument that the call does without, or that no function has."""
    known = inspect.signature(getattr(ops, call.operation)).parameters
    name = draw.choice([*(name for name in known if name not in call.arguments), "unknown"])
    given = tuple(call.arguments.values())
    call.arguments[name] = draw.choice(given) if given and draw.random() < 0.5 else thing(draw, call, None)


def replace(draw: random.Random, call: Call) -> None:
    name = draw.choice(tuple(call.arguments))
    old = call.arguments[name]
    if not (isinstance(old, list) and draw.random() < 0.8):
        whole = draw.random() < 0.2  # that of another one: a list in the place of a list
        others = tuple(call.arguments.values())
        call.arguments[name] = draw.choice(others) if whole else thing(draw, call, old)
        return
    new = call.arguments[name] = list(old)
    if not new or draw.random() < 0.1:
        new.insert(draw.randint(0, len(new)), thing(draw, call, None))
    elif draw.random() < 0.1:
        new.pop()
    else:
        i = draw.randrange(len(new))
        new[i] = thing(draw, call, new[i])
