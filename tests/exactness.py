"""The bound for what is computed in another order than by torch: the naive way's own error, twice."""

from __future__ import annotations

import torch
from tolerances import U


def assert_all_as_exact(ours, naive, truth):
    """Of several tensors that belong together, as those of a gradient: all their elements as one."""
    flat = [torch.cat([x.detach().flatten() for x in tensors]) for tensors in (ours, naive, truth)]
    assert [x.shape for x in ours] == [x.shape for x in naive] == [x.shape for x in truth]
    assert_as_exact(*flat)


def assert_as_exact(ours, naive, truth, what=""):
    """Ours is at most twice as far from `truth` (float64) as `naive`, which has the same dtype.

    Errors are root mean squares over all elements: what a single element gets is luck. One rounding of the largest
    element is allowed in any case: the naive way may be exact.
    """
    assert ours.dtype == naive.dtype, what
    assert ours.shape == naive.shape == truth.shape, what
    assert torch.isfinite(ours).all(), what
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (ours, naive))
    unit = U[str(ours.dtype).removeprefix("torch.")] * truth.abs().max()
    assert error <= 2 * allowed + unit, f"{what}: {error:.3g}, the naive way {allowed:.3g}"
