"""What the tests of sharded parameters run in each process. Every check compares with a run in a single process.

Gradients are multiples of 1/8 with few bits: their squares and all sums of them are exact in double, so the norm has
the same bits however the sum is shared out, and so has everything that follows from it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cases
import fusestep.nn.utils
import fusestep.optim
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import Parameter
from torch_pairs import ours


@lru_cache(maxsize=1)
def meshes():
    """All processes in a row, as a table of two columns, and the first column's process of each row."""
    world = dist.get_world_size()
    table = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
    return {"row": init_device_mesh("cpu", (world,)), "table": table, "tp": table["tp"]}


# (shape, mesh, placements); None: a plain tensor, of which every process has its own copy
SPREAD = (
    ((33, 5), "row", [Shard(0)]),
    ((3, 2), "row", [Shard(0)]),  # of four processes the last has nothing
    ((6, 5), "row", [Shard(1)]),
    ((4, 3), "row", [Replicate()]),
    ((), "row", [Replicate()]),
    ((0, 3), "row", [Shard(0)]),
    ((5, 3, 4), "table", [Replicate(), Shard(0)]),
    ((8, 7), "table", [Shard(0), Shard(1)]),
    ((9, 4), "table", [_StridedShard(0, split_factor=2), Shard(0)]),
    ((7,), "tp", [Shard(0)]),
    ((6, 2), None, None),
    ((cases.SLICE + 5,), "row", [Shard(0)]),
)


def spread(values, mesh, placements):
    if mesh is None:
        return values.clone()
    return distribute_tensor(values, meshes()[mesh], placements, src_data_rank=None)


def gathered(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def make_params(dtype=torch.float32):
    """Each parameter twice: whole, and spread."""
    rng = np.random.default_rng(1)
    values = [torch.tensor(rng.normal(size=shape), dtype=torch.float32).to(dtype) for shape, _, _ in SPREAD]
    whole = [Parameter(v.clone()) for v in values]
    return whole, [
        Parameter(spread(v, mesh, placements)) for v, (_, mesh, placements) in zip(values, SPREAD, strict=True)
    ]


def exact_grads(step, dtype=torch.float32):
    rng = np.random.default_rng((2, step))
    return [torch.tensor(rng.integers(-8, 9, size=shape) / 8, dtype=torch.float32).to(dtype) for shape, _, _ in SPREAD]


def set_grads(params, grads):
    """Spread as the parameters are."""
    for p, g in zip(params, grads, strict=True):
        p.grad = distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else g


def assert_equal(got, expected, what):
    """This process' part, bit for bit: without communication."""
    if isinstance(got, DTensor):
        assert got.shape == expected.shape, what
        expected = distribute_tensor(expected.detach(), got.device_mesh, got.placements, src_data_rank=None).to_local()
        got = got.to_local()
    got, expected = got.detach(), expected.detach()
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
    same = torch.equal(got.contiguous().flatten().view(torch.uint8), expected.contiguous().flatten().view(torch.uint8))
    assert same, (what, got, expected)


def assert_same_run(spread_optimizer, spread_params, whole_optimizer, whole_params):
    """Parameters, gradients, states and what the optimizers say: bit for bit. States are placed as parameters are."""
    assert spread_optimizer.grad_norm == whole_optimizer.grad_norm
    assert spread_optimizer.skipped_steps == whole_optimizer.skipped_steps
    for i, (p, q) in enumerate(zip(spread_params, whole_params, strict=True)):
        assert_equal(p, q, f"params[{i}]")
        assert_equal(p.grad, q.grad, f"grads[{i}]")
        state, expected = spread_optimizer.state[p], whole_optimizer.state[q]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            if value is None:
                assert state[key] is None
                continue
            assert_equal(state[key], value, f"{key}[{i}]")
            if key != "step" and isinstance(p, DTensor):
                assert (state[key].device_mesh, state[key].placements) == (p.device_mesh, p.placements), key


def equals_a_single_process(name, options, clipping, dtype=torch.float32):
    row = cases.BY_NAME[name]
    whole, shards = make_params(dtype)
    alone, together = (ours(row)(params, **options, **clipping) for params in (whole, shards))
    for step in range(1, 4):
        grads = exact_grads(step, dtype)
        set_grads(whole, [g.clone() for g in grads])
        set_grads(shards, grads)
        alone.step()
        together.step()
        assert_same_run(together, shards, alone, whole)
    if clipping.get("max_grad_norm"):
        assert together.grad_norm > 0


def partial_gradients(name, options):
    """Sums that are still to be made, and another placement: redistributed, whatever the parameter's own is."""
    row = cases.BY_NAME[name]
    whole, shards = make_params()
    alone, together = (ours(row)(params, **options, max_grad_norm=1.0) for params in (whole, shards))
    for step in range(1, 3):
        grads = exact_grads(step)
        set_grads(whole, grads)
        set_grads(shards, grads)
        for i, (p, g) in enumerate(zip(shards, grads, strict=True)):
            if not isinstance(p, DTensor):
                continue
            others = torch.ones_like(g) / 8
            first = not any(p.device_mesh.get_coordinate())
            mine = g - (p.device_mesh.size() - 1) * others if first else others
            if i % 2 == 0:
                p.grad = DTensor.from_local(mine, p.device_mesh, [Partial()] * p.device_mesh.ndim, run_check=False)
            else:
                p.grad = distribute_tensor(g, p.device_mesh, [Replicate()] * p.device_mesh.ndim, src_data_rank=None)
        alone.step()
        together.step()
        for i, (p, q) in enumerate(zip(shards, whole, strict=True)):
            assert_equal(p, q, f"params[{i}]")
        assert together.grad_norm == alone.grad_norm


def one_bad_element(bad, on_nonfinite):
    """In the shard of the last process alone: all leave the step out, or raise, with nothing changed."""
    whole, shards = make_params()
    optimizer = fusestep.optim.AdamW(shards, max_grad_norm=1.0, on_nonfinite=on_nonfinite)
    set_grads(shards, exact_grads(1))
    last = dist.get_rank() == dist.get_world_size() - 1
    if last:
        shards[0].grad.to_local()[0, 0] = bad
    if on_nonfinite == "raise":
        with pytest.raises(RuntimeError, match=r"AdamW\.step: grads: expected a finite norm, got"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.skipped_steps == 1
        assert not math.isfinite(optimizer.grad_norm)
    assert not optimizer.state
    for i, (p, q) in enumerate(zip(shards, whole, strict=True)):
        assert_equal(p, q, f"params[{i}]")
