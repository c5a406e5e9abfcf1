"""The attention problems that are measured, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rows import PEAK, Bar

TORCH = "torch SDPA"
FORWARD, BOTH = "forward", "forward + backward"
MASKS = ("none", "causal", "key padding", "boolean", "additive")


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    length: int
    features: int

    def __str__(self) -> str:
        return f"({self.batch}, {self.heads}, {self.length}, {self.features})"


S256, S1024, S2048, TINY, S4096 = (
    Shape(8, 12, 256, 64), Shape(4, 12, 1024, 64), Shape(1, 16, 2048, 128), Shape(2, 4, 64, 32), Shape(1, 1, 4096, 64),
)  # fmt: skip
SHAPES = (S256, S1024, S2048, TINY, S4096)
QUICK_SHAPES = (S256, TINY)


@dataclass(frozen=True)
class Problem:
    """One row: the attention of a model, on tensors of its own."""

    shape: Shape
    mask: str
    p: float
    direction: str
    dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        dtype = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        return f"{self.shape} {self.mask}, p = {self.p:g}{dtype}"

    @property
    def flops(self) -> float:
        """Two products forward, five more backward; a causal mask leaves half. Others count as if all were done."""
        s = self.shape
        products = 2 if self.direction == FORWARD else 7
        full = products * 2.0 * s.batch * s.heads * s.length**2 * s.features
        return full / 2 if self.mask == "causal" else full

    @property
    def result_bytes(self) -> int:
        """Output and log-sum-exp, and the three gradients where there are."""
        s = self.shape
        tensor = s.batch * s.heads * s.length * s.features * self.dtype.itemsize
        results = tensor if self.direction == FORWARD else 4 * tensor
        return results + s.batch * s.heads * s.length * 4


@dataclass(frozen=True)
class Tensors:
    """query, key and value; the mask as torch takes it and as ours does; the gradient of the output."""

    inputs: tuple[Tensor, Tensor, Tensor]
    torch_options: dict[str, Any]
    our_options: dict[str, Any]
    grad: Tensor


def make_tensors(problem: Problem) -> Tensors:
    s = problem.shape
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(problem.dtype)

    query, key, value = (
        draw(s.batch, s.heads, s.length, s.features).requires_grad_(problem.direction == BOTH) for _ in range(3)
    )
    theirs: dict[str, Any] = {"dropout_p": problem.p}
    ours: dict[str, Any] = {"dropout_p": problem.p}
    match problem.mask:
        case "causal":
            theirs["is_causal"] = ours["causal"] = True
        case "key padding":  # from half of the keys to nearly all
            ours["key_lengths"] = torch.linspace(s.length / 2, s.length, s.batch + 2)[1:-1].long()
            present = torch.arange(s.length) < ours["key_lengths"][:, None]
            theirs["attn_mask"] = present[:, None, None, :]
        case "boolean":  # one for each sequence; three of four keys
            theirs["attn_mask"] = ours["mask"] = draw(s.batch, 1, s.length, s.length).float() > -0.6745
        case "additive":  # one for each head, as biases of positions are
            theirs["attn_mask"] = ours["mask"] = draw(1, s.heads, s.length, s.length)
    # As a model's projection gives it.
    grad = draw(s.batch, s.length, s.heads, s.features).transpose(1, 2)
    return Tensors((query, key, value), theirs, ours, grad)


# How many times as fast as torch: p, masks, shapes, forward, forward + backward.
_SPEED = (
    (0.0, ("none", "key padding"), (S256, S1024, S4096), 1.2, 1.1),
    (0.0, ("boolean",), (S256, S1024, S4096), 1.2, 1.2),
    (0.0, ("additive",), (S256, S1024, S4096), 1.05, 1.1),
    (0.0, ("causal",), (S256,), 2.1, 2.0),
    (0.0, ("causal",), (S1024,), 1.8, 1.8),
    (0.0, ("causal",), (S4096,), 1.3, 1.3),
    (0.0, ("none",), (S2048,), 1.05, 1.05),
    (0.0, ("causal",), (S2048,), 1.2, 1.2),
    (0.1, ("additive",), (S256,), 4.0, 2.4),
    (0.1, ("none", "key padding", "boolean"), (S256,), 4.7, 2.5),
    (0.1, ("causal",), (S256,), 7.5, 4.0),
    (0.1, ("none",), (S1024, S2048), 7.0, 5.0),
    (0.1, ("none",), (S4096,), 7.0, 3.5),
    (0.1, ("causal",), (S1024, S2048, S4096), 10.0, 6.0),
)
_TINY_SPEED = {1: 1.6, 2: 2.2}  # by threads
_TINY_SPEED_BOTH = 1.5
_SHARE_OF_PEAK = 0.62
BF16_SPEED = 0.8  # against our own float32
PHILOX_SHARE = 0.14
MEMORY = 1.1  # times the results, with dropout


def bars(threads: int) -> Iterator[Bar]:
    """As ratios of times: ours over theirs."""
    for p, masks, shapes, forward, both in _SPEED:
        for mask in masks:
            for shape in shapes:
                yield Bar(FORWARD, Problem(shape, mask, p, FORWARD).title, TORCH, 1 / forward)
                yield Bar(BOTH, Problem(shape, mask, p, BOTH).title, TORCH, 1 / both)
                if p == 0.0 and mask in ("none", "key padding") and shape.features == 64:
                    yield Bar(FORWARD, Problem(shape, mask, p, FORWARD).title, PEAK, 1 / _SHARE_OF_PEAK)
    tiny = Problem(TINY, "none", 0.0, FORWARD)
    yield Bar(FORWARD, tiny.title, TORCH, 1 / _TINY_SPEED[min(threads, 2)])
    yield Bar(BOTH, tiny.title, TORCH, 1 / _TINY_SPEED_BOTH)
