"""Our optimizer classes beside torch's: what the test_torch_* files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cases
import fusestep.optim
import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

SHAPES = ((33, 5), (17,), (), (0, 3), (2, 3, 4))
STEPS = 10


def ours(row: cases.Optimizer) -> Any:
    return getattr(fusestep.optim, row.torch_class)


def theirs(row: cases.Optimizer) -> Any:
    return getattr(torch.optim, row.torch_class)


def common_setting(row: cases.Optimizer) -> cases.Options:
    """The fullest setting that torch has too, word for word."""
    return max((s for s in row.settings if row.torch_options(dict(s)) == s), key=len)


COMMON: dict[str, Any] = {
    "argvalues": [(row, common_setting(row)) for row in cases.OPTIMIZERS],
    "ids": [row.name for row in cases.OPTIMIZERS],
}


def make_params(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Parameter]:
    """Parameters whose values are float32 numbers, so that both dtypes begin at the same point."""
    rng = np.random.default_rng(1)
    return [Parameter(torch.from_numpy(np.array(rng.normal(size=s), "float32")).to(dtype)) for s in shapes]


def make_grads(step: int, params: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of one step: float32 numbers in each parameter's dtype; norm well above 1."""
    rng = np.random.default_rng((2, step))
    return [torch.from_numpy(np.array(rng.normal(size=p.shape), "float32")).to(p.dtype) for p in params]


def train(
    optimizer: Any,
    params: Sequence[Tensor],
    steps: range = range(1, STEPS + 1),
    before: Callable[[int], None] | None = None,
) -> None:
    """Steps with prescribed gradients: what one run does cannot feed back into the gradients of another."""
    for step in steps:
        for p, g in zip(params, make_grads(step, params), strict=True):
            p.grad = g
        if before is not None:
            before(step)
        optimizer.step()


def copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def snapshot(optimizer: Any, params: Sequence[Tensor]) -> dict[str, Tensor]:
    """Copies of all parameters and of all their state."""
    copies = {f"params[{i}]": copied(p.detach()) for i, p in enumerate(params)}
    for i, p in enumerate(params):
        for key, value in optimizer.state.get(p, {}).items():
            copies[f"{key}[{i}]"] = copied(value)
    return copies


def assert_same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert torch.equal(*(copied(t).flatten().view(torch.uint8) for t in (got[name], tensor))), name


def by_kind(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """{"params": all elements of all parameters, "exp_avg": ...}, in float64."""
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in results.items():
        kinds.setdefault(name.split("[")[0], []).append(tensor.double().flatten())
    return {kind: torch.cat(tensors) for kind, tensors in kinds.items()}


def assert_as_exact_as_torch(
    ours32: dict[str, Tensor],
    torch32: dict[str, Tensor],
    ours64: dict[str, Tensor],
    torch64: dict[str, Tensor],
) -> None:
    """Four runs from the same numbers. No tolerance is chosen by hand: torch's own float32 error sets it.

    Errors are against torch in float64, the largest over all tensors of a kind (parameters, moments, ...).
    float32: at most twice torch's own error, and 4 ulp of the largest value for where torch is lucky.
    float64: the same roundings happen at 2**-29 of the size, and now both runs make them: three times torch's
    float32 error, scaled, and the ulps.
    """
    assert ours32.keys() == torch32.keys() == ours64.keys() == torch64.keys()
    eps32, eps64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
    a32, b32, a64, b64 = (by_kind(run) for run in (ours32, torch32, ours64, torch64))
    for kind, expected in b64.items():
        own = (b32[kind] - expected).abs().max()
        largest = expected.abs().max()
        assert (a32[kind] - expected).abs().max() <= 2 * own + 4 * eps32 * largest, kind
        assert (a64[kind] - expected).abs().max() <= 3 * own * (eps64 / eps32) + 4 * eps64 * largest, kind
