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

    Root mean squares over all elements are compared: what a single element gets is luck. So that none can be far off
    where many are near, the worst of them may be four times as far as the naive way's worst. One rounding of the
    largest element is allowed in any case: the naive way may be exact.
    """
    assert ours.dtype == naive.dtype, what
    assert ours.shape == naive.shape == truth.shape, what
    assert torch.isfinite(ours).all(), what
    unit = U[str(ours.dtype).removeprefix("torch.")] * truth.abs().max()
    errors, allowed = ((x.double() - truth).abs() for x in (ours, naive))
    for norm, factor, name in ((_root_mean_square, 2, "error"), (torch.max, 4, "worst error")):
        error, bound = norm(errors), factor * norm(allowed) + unit
        assert error <= bound, f"{what}: {name} {error:.3g}, at most {bound:.3g}"


def _root_mean_square(x):
    return x.square().mean().sqrt()
