"""Running a problem of attention_cases.py through fusestep.ops, and judging what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import attention_cases
import numpy as np
import problems
import tolerances
import torch
from attention_cases import Problem
from fusestep import ops, reference

DTYPES = ("float32", "float64", "bfloat16", "float16")
GRADIENTS = ("grad_query", "grad_key", "grad_value", "grad_mask")


@dataclass
class Arrays:
    """A problem in the arrays that fusestep gets."""

    query: Any
    key: Any
    value: Any
    grad_out: Any
    options: dict[str, Any]

    def tensors(self):
        return self.query, self.key, self.value

    def forward(self, **more):
        return ops.attention(*self.tensors(), **self.options, **more)

    def backward(self, out, lse, *, grad_mask=False):
        return ops.attention_backward(self.grad_out, *self.tensors(), out, lse, **self.options, grad_mask=grad_mask)

    def all(self):
        """(out, lse, *gradients), of the mask too where it is additive."""
        mask = self.options.get("mask")
        additive = mask is not None and mask.dtype not in (torch.bool, np.bool_)
        out, lse = self.forward()
        return out, lse, *self.backward(out, lse, grad_mask=additive)


def arrays(problem: Problem, dtype: str, kind: str = "numpy", layout: str = "contiguous") -> Arrays:
    """`problem` holds values that dtype can hold. bfloat16 comes in torch's tensors whatever `kind`."""

    def array(values, of=dtype):
        return problems.array(values, of, kind, layout)

    options = dict(problem.options)
    mask = options.get("mask")
    if mask is not None and mask.dtype == np.bool_:
        options["mask"] = torch.from_numpy(mask) if kind == "torch" or dtype == "bfloat16" else mask
    elif mask is not None:
        options["mask"] = array(mask)
    if "alibi_slopes" in options:
        options["alibi_slopes"] = array(options["alibi_slopes"], "float64" if dtype == "float64" else "float32")
    return Arrays(*(array(a) for a in (*problem.tensors(), problem.grad_out)), options)


def wide(a) -> np.ndarray:
    return problems.as_numpy(a).astype(np.float64)


def expected(problem: Problem, gradients: bool = True) -> dict[str, np.ndarray]:
    out, lse = reference.attention(*problem.tensors(), **problem.options)
    results = {"out": out, "lse": lse}
    if gradients:
        grads = reference.attention_backward(problem.grad_out, *problem.tensors(), **problem.options)
        results |= {name: g for name, g in zip(GRADIENTS, grads, strict=True) if g is not None}
    return results


def assert_within(got, want, bound, what="") -> None:
    """Element by element; where nothing may differ (-inf, zeros of empty rows), nothing does."""
    assert got.shape == want.shape, what
    with np.errstate(invalid="ignore"):
        wrong = ~((got == want) | (np.abs(got - want) <= bound))
    if wrong.any():
        with np.errstate(all="ignore"):
            excess = np.where(wrong, np.nan_to_num(np.abs(got - want) / bound, nan=np.inf), -1)
        worst = np.unravel_index(np.argmax(excess), wrong.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size}, worst at {worst}: {got[worst]!r}, expected {want[worst]!r} "
            f"within {np.broadcast_to(bound, got.shape)[worst]:.3g}"
        )


def check(problem: Problem, dtype: str = "float32", kind: str = "numpy", layout: str = "contiguous") -> None:
    """Forward and backward against the reference."""
    problem = problem.rounded(dtype)
    given = arrays(problem, dtype, kind, layout)
    results = given.all()
    want, bound = expected(problem), tolerances.attention(problem, dtype)
    assert len(results) == len(want)
    for (name, reference_value), got in zip(want.items(), results, strict=True):
        assert_within(wide(got), reference_value, bound[name], f"{name} in {dtype}")


def drawn(shape: attention_cases.Shape, features: dict[str, Any], seed: int = 11, spread: float = 1.0) -> Problem:
    return attention_cases.make(shape, features, np.random.default_rng(seed), spread)
