"""What random calls are made of, and how their results are compared."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cases
import numpy as np
import problems
import tolerances
from arena import BFLOAT16, Arena, as_kind
from fusestep import ops, reference

DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16")} | {"bfloat16": BFLOAT16}
SPECIALS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 2.0**-149, 3e38, -65504.0, 1e-7)
_NORMAL = np.random.default_rng(1).standard_normal(1 << 16)


@dataclass
class Call:
    operation: str
    arguments: dict[str, Any]
    arena: Arena
    written: tuple[str, ...]  # the arguments whose arrays may change
    check: Callable[[Any], None]  # of what came back
    not_finite: bool = False  # whether it may refuse its gradients for that

    def run(self) -> Any:
        return getattr(ops, self.operation)(**self.arguments)


class Drawer:
    """What the calls are drawn with."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.arena = Arena(self.random)
        self.kind = self.random.choice(("numpy", "numpy", "torch"))
        self.special = self.random.random() < 0.1

    def shape(self) -> tuple[int, ...]:
        if self.random.random() < 0.5:
            return (self.random.choice(cases.SMALL_SIZES),)
        return tuple(self.random.choice((0, 1, 1, 2, 3, 5, 8)) for _ in range(self.random.randrange(4)))

    def dtype(self) -> str:
        return self.random.choice(tuple(DTYPES))

    def values(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Normal numbers that the dtype can hold; in one call of ten, some that are special."""
        size = math.prod(shape)
        start = self.random.randrange(_NORMAL.size - size)
        with np.errstate(all="ignore"):
            values = _NORMAL[start : start + size].reshape(shape).astype(DTYPES[dtype])
            if self.special and size:
                values.reshape(-1)[self.random.randrange(size)] = self.random.choice(SPECIALS)
        return values

    def array(self, values: np.ndarray) -> Any:
        return as_kind(self.arena.strided(values), self.kind)

    def seed(self, number: int) -> Any:
        """The seed of a dropout mask as it is given: as that number or, in memory, as the int64 with its 64 bits."""
        if self.random.random() < 0.7:
            return number
        return self.array(np.array(number, np.uint64).view(np.int64))

    def numpy_rng(self) -> np.random.Generator:
        return np.random.default_rng(self.random.getrandbits(64))


def wide(values: np.ndarray, dtype: str) -> np.ndarray:
    """As the kernels compute with it: float64 stays, the rest is float32."""
    return values.astype(np.float64 if dtype == "float64" else np.float32)


def assert_bits(got: Any, want: np.ndarray, dtype: str, what: str) -> None:
    """Equal bit for bit, whichever NaN it is, once `want` is rounded to the dtype."""
    with np.errstate(all="ignore"):
        want = np.asarray(want).astype(DTYPES[dtype])
    got, want = np.asarray(problems.as_numpy(got)), np.asarray(problems.as_numpy(want))
    if got.dtype == BFLOAT16:
        got, want = got.astype(np.float32), want.astype(np.float32)
    want = want.astype(got.dtype)
    assert got.shape == want.shape, what
    problems.assert_same_bits(problems.one_nan(got).ravel(), problems.one_nan(want).ravel(), what)


def norm_of(grads: list[np.ndarray], norm_type: float) -> float:
    with np.errstate(all="ignore"):
        return float(reference.grad_norm([g.astype(np.float64) for g in grads], norm_type))


def assert_norm(got: float | None, want: float, grads: list[np.ndarray]) -> None:
    assert isinstance(got, float)
    if not math.isfinite(want):
        assert got == want or (math.isnan(got) and math.isnan(want))
        return
    numel = sum(g.size for g in grads)
    error = tolerances.norm_error(numel, 1.0) + tolerances.reference_norm_error(numel, len(grads))
    assert abs(got - want) <= error * want
