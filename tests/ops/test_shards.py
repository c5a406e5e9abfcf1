"""What the core does for one process among several: its part of a norm, and rounding by places in the whole."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
import torch
from fusestep import _core, ops

NORMS = pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])


def pieces(rng, sizes=(1, 33, 0, cases.SLICE + 7)):
    return [torch.tensor(rng.standard_normal(n), dtype=torch.float32) for n in sizes]


@NORMS
def test_one_total_makes_the_norm(norm_type, rng):
    grads = pieces(rng)
    total = _core.grad_total("total", grads, norm_type)
    assert _core.grad_norm("norm", [], norm_type, totals=np.array([total])) == ops.grad_norm(grads, norm_type)
    assert _core.grad_total("total", [], norm_type) == 0.0


@NORMS
def test_totals_stand_for_the_gradients(norm_type):
    """Exact squares: the sums of any number of parts are the sum of all."""
    rng = np.random.default_rng(1)
    grads = [torch.tensor(rng.integers(-8, 9, n) / 8, dtype=torch.float32) for n in (5, 1000, 3)]
    totals = np.array([_core.grad_total("total", [g], norm_type) for g in grads])
    want = ops.grad_norm(grads, norm_type)
    options = {"max_grad_norm": 0.5, "norm_type": norm_type}
    results = []
    for mine, given in ((grads, None), (grads[:1], totals)):
        params = [torch.ones_like(g) for g in mine]
        group = ({"lr": 0.5}, params, mine, (None,), 1, None, None)
        assert _core.optimizer_step("step", "sgd", [group], options, None, given) == (want, True)
        results.append(params[0])
    assert torch.equal(*results)
    clipped = [grads[0].clone(), grads[0].clone()]
    _core.clip_grad_norm_(
        "clip", [clipped[0], *[g.clone() for g in grads[1:]]], {"max_norm": 0.5, "norm_type": norm_type}
    )
    norm = _core.clip_grad_norm_("clip", clipped[1:], {"max_norm": 0.5, "norm_type": norm_type}, None, totals)
    assert norm == want
    assert torch.equal(*clipped)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_total_of_another_process_skips(bad):
    p, g = torch.ones(3), torch.ones(3)
    group = ({"lr": 0.5}, [p], [g], (None,), 1, None, None)
    norm, applied = _core.optimizer_step("step", "sgd", [group], {"max_grad_norm": 1.0}, None, np.array([3.0, bad]))
    assert not applied
    assert not math.isfinite(norm)
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize(
    ("totals", "error"),
    [
        (np.ones(3, np.float32), r"^norm: totals: expected contiguous float64"),
        (np.ones(6)[::2], r"^norm: totals: expected contiguous float64"),
        ([1.0], r"^norm: totals: expected"),
    ],
    ids=["float32", "strided", "list"],
)
def test_bad_totals(totals, error):
    with pytest.raises((TypeError, ValueError), match=error):
        _core.grad_norm("norm", [], 2.0, totals=totals)


SHAPE = (37, 1100)  # 40,700 elements: more than two slices
SHARDS = {
    "rows": (slice(5, 21), slice(0, 1100)),
    "columns": (slice(0, 37), slice(3, 500)),
    "rows and columns": (slice(30, 37), slice(601, 1100)),
    "one row": (slice(7, 8), slice(100, 333)),
    "one column": (slice(2, 31), slice(9, 10)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shard", SHARDS)
def test_rounding_by_places_in_the_whole(shard, dtype):
    """Parameters and states of 16 bits: the bits of a step over the whole."""
    rng = np.random.default_rng(3)
    values, grads, m = (torch.tensor(rng.standard_normal(SHAPE), dtype=dtype) for _ in range(3))
    v = m.abs()
    options = {"lr": 0.01, "rounding": "stochastic", "seed": 77}
    whole = [t.clone() for t in (values, m, v)]
    _core.optimizer_step("step", "adamw", [group(options, *whole, grads, [4])], {})
    rows, columns = at = SHARDS[shard]
    mine = [t[at].contiguous() for t in (values, m, v)]
    width = columns.stop - columns.start
    number = (4, rows.start * SHAPE[1] + columns.start, width, SHAPE[1])
    _core.optimizer_step("step", "adamw", [group(options, *mine, grads[at].contiguous(), [number])], {})
    for got, want in zip(mine, whole, strict=True):
        assert torch.equal(got, want[at])


def group(options, p, m, v, g, numbers):
    return (options, [p], [g], ([m], [v], None), 3, None, numbers)
