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
from fusestep.optim import sharding
from tolerances import U, norm_error
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
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


def rounds_as_a_single_process(name, options, dtype):
    """Stochastic rounding draws by the place of an element in the whole: the same bits over any number of processes."""
    extras = {"rounding": "stochastic", "seed": 11, "max_grad_norm": 1.0, "state_dtype": dtype}
    equals_a_single_process(name, options, extras, dtype)


def positions_are_those_of_the_whole():
    """For every placement, one that is refused too."""
    mesh, table = meshes()["row"], meshes()["table"]
    some = [*SPREAD, ((6, 5, 7), "table", [Shard(0), Shard(2)]), ((4, 6), "table", [Shard(1), Shard(1)])]
    for shape, name, placements in some:
        if name is None:
            continue
        numbered = spread(torch.arange(math.prod(shape)).reshape(shape), name, placements).to_local().flatten()
        first, run, pitch = sharding._positions(shape, meshes()[name], tuple(placements))
        element = torch.arange(numbered.numel())
        assert torch.equal(numbered, first + element // run * pitch + element % run), (shape, placements)
    # Over two processes pieces of a dimension, over four two dimensions of which none is the first.
    if mesh.size() == 2:
        shape, mesh, placements = (8, 3), mesh, [_StridedShard(0, split_factor=2)]
    else:
        shape, mesh, placements = (3, 4, 6), table, [Shard(1), Shard(2)]
    assert sharding._positions(shape, mesh, tuple(placements)) is None
    p = Parameter(distribute_tensor(torch.zeros(shape).bfloat16(), mesh, placements, src_data_rank=None))
    p.grad = torch.zeros_like(p)
    optimizer = fusestep.optim.SGD([p], rounding="stochastic", seed=1)
    with pytest.raises(ValueError, match=r"SGD\.step: params\[0\]: expected with rounding=.stochastic. a shard along"):
        optimizer.step()


def norms_of_the_whole(norm_type):
    """get_total_norm and clip_grad_norm_: exact where the sums are, and within the derived bound of random numbers."""
    whole, shards = make_params()
    grads = exact_grads(1)
    for p, g in zip(whole, grads, strict=True):
        p.grad = g.clone()
    for i, (p, g) in enumerate(zip(shards, grads, strict=True)):
        if not isinstance(p, DTensor):
            p.grad = g.clone()
        elif i % 3 == 0:
            p.grad = as_partial(g, p.device_mesh)
        else:
            p.grad = distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None)
    expected = fusestep.nn.utils.get_total_norm([p.grad for p in whole], norm_type)
    assert_equal(fusestep.nn.utils.get_total_norm([p.grad for p in shards], norm_type), expected, "total")
    versions = [p.grad._version for p in shards]
    # A power of two times the norm: the factor is exact but for the 1e-6, and the sums of partial terms nearly.
    assert_equal(fusestep.nn.utils.clip_grad_norm_(shards, 0.5, norm_type), expected, "clipped")
    fusestep.nn.utils.clip_grad_norm_(whole, 0.5, norm_type)
    for i, (p, q) in enumerate(zip(shards, whole, strict=True)):
        bound = 4 * dist.get_world_size() * torch.finfo(torch.float32).eps * q.grad.abs().max() if q.numel() else 0
        assert torch.all((gathered(p.grad) - q.grad).abs() <= bound), i
    assert all(p.grad._version > version for p, version in zip(shards, versions, strict=True))

    rng = np.random.default_rng(5)
    values = [torch.tensor(rng.normal(size=shape)) for shape, _, _ in SPREAD]
    numel = sum(v.numel() for v in values)
    both = [
        float(fusestep.nn.utils.get_total_norm(tensors, norm_type))
        for tensors in (values, [spread(v, mesh, at) for v, (_, mesh, at) in zip(values, SPREAD, strict=True)])
    ]
    assert abs(both[0] - both[1]) <= 2 * (norm_error(numel, norm_type) + sums_error(norm_type)) * both[0]


def sums_error(norm_type):
    """Of adding up the processes' sums, over three meshes."""
    return 0.0 if norm_type == math.inf else (3 * dist.get_world_size() + 3) * U["float64"]


def as_partial(values, mesh):
    """Terms whose sum over the mesh is exactly `values`."""
    others = torch.ones_like(values) / 8
    mine = others if any(mesh.get_coordinate()) else values - (mesh.size() - 1) * others
    return DTensor.from_local(mine, mesh, [Partial()] * mesh.ndim, run_check=False)


def clip_values():
    whole, shards = make_params()
    set_grads(whole, exact_grads(1))
    set_grads(shards, exact_grads(1))
    fusestep.nn.utils.clip_grad_value_(whole, 0.25)
    fusestep.nn.utils.clip_grad_value_(shards, 0.25)
    for i, (p, q) in enumerate(zip(shards, whole, strict=True)):
        assert_equal(p.grad, q.grad, f"grads[{i}]")
    shards[0].grad = as_partial(exact_grads(1)[0], shards[0].device_mesh)
    with pytest.raises(
        ValueError, match=r"clip_grad_value_: grads\[0\]: expected shards or replicas, got a partial sum"
    ):
        fusestep.nn.utils.clip_grad_value_(shards, 0.25)


def grad_scaler(clipping):
    """An overflow in the last process alone: all leave the step out. Then a step as in a single process."""
    whole, shards = make_params()
    whole, shards = ([params[i] for i in (0, 1, 2)] for params in (whole, shards))  # torch's scaler takes one mesh
    alone, together = (fusestep.optim.AdamW(params, **clipping) for params in (whole, shards))
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2))
    grads = [g for i, g in enumerate(exact_grads(1)) if i < 3]
    for p, g in zip(shards, grads, strict=True):
        p.grad = distribute_tensor(8 * g, p.device_mesh, p.placements, src_data_rank=None)
    if dist.get_rank() == dist.get_world_size() - 1:
        shards[0].grad.to_local()[0, 0] = math.inf
    scaler.scale(torch.ones(()))  # the scale is made at the first call
    scaler.step(together)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert together.skipped_steps == 1
    assert not together.state
    if "max_grad_norm" in clipping:
        assert not math.isfinite(together.grad_norm)
    other.scale(torch.ones(()))
    for p, q, g in zip(shards, whole, grads, strict=True):
        p.grad = distribute_tensor(4 * g, p.device_mesh, p.placements, src_data_rank=None)
        q.grad = 8 * g
    scaler.step(together)
    other.step(alone)
    for i, (p, q) in enumerate(zip(shards, whole, strict=True)):
        assert_equal(p, q, f"params[{i}]")
    assert together.grad_norm == alone.grad_norm


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
            if i % 2 == 0:
                p.grad = as_partial(g, p.device_mesh)
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


def refusals():
    """Bad input: one error each, on all processes, with nothing changed."""
    row, table = meshes()["row"], meshes()["table"]

    def param():
        return Parameter(distribute_tensor(torch.ones(4, 2), row, [Shard(0)], src_data_rank=None))

    def refused(params, grads, match, error=ValueError, name="AdamW", **options):
        optimizer = getattr(fusestep.optim, name)(params, **options)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        with pytest.raises(error, match=match):
            optimizer.step()
        assert not optimizer.state
        for p in params:
            assert torch.equal(p.to_local(), torch.ones_like(p.to_local()))

    p = param()
    refused([p], [torch.ones(4, 2)], r"AdamW\.step: grads\[0\]: expected a DTensor as its parameter is, S\(0\)")
    other_mesh = distribute_tensor(torch.ones(4, 2), table, [Replicate(), Shard(0)], src_data_rank=None)
    refused([p], [other_mesh], r"AdamW\.step: grads\[0\]: expected the mesh of its parameter, .* Redistribute it")
    replicated = distribute_tensor(torch.ones(4, 2), row, [Replicate()], src_data_rank=None)
    match = r"grads\[0\]: expected the placement of its parameter, S\(0\), got R\. rewrite_grads"
    refused([p], [replicated], match, max_grad_norm=1.0, rewrite_grads=True)
    partial = Parameter(DTensor.from_local(torch.ones(4, 2), row, [Partial()], run_check=False))
    refused([partial], [torch.ones_like(partial)], r"params\[0\]: expected shards or replicas, got P")

    # Of the second group, the second parameter.
    optimizer = fusestep.optim.SGD([{"params": [param()]}, {"params": [param(), q := param()]}])
    q.grad = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"SGD\.step: groups\[1\]\.grads\[1\]: expected a DTensor"):
        optimizer.step()

    # The state of a single process, loaded by the wrong function.
    p = param()
    alone = Parameter(torch.ones(4, 2))
    optimizer, whole = fusestep.optim.AdamW([p]), fusestep.optim.AdamW([alone])
    p.grad, alone.grad = torch.ones_like(p), torch.ones(4, 2)
    whole.step()
    optimizer.load_state_dict(whole.state_dict())
    with pytest.raises(
        ValueError, match=r"exp_avg of params\[0\]: expected a DTensor .* got a tensor of shape \(4, 2\)"
    ):
        optimizer.step()
    assert torch.equal(p.to_local(), torch.ones_like(p.to_local()))


def different_gradients():
    """A parameter without a gradient on one process alone: all say which process that is."""
    _, shards = make_params()
    set_grads(shards, exact_grads(1))
    last = dist.get_world_size() - 1
    if dist.get_rank() == last:
        shards[1].grad = None
    optimizer = fusestep.optim.AdamW(shards, max_grad_norm=1.0)
    rank = last if last > 1 else "[01]"  # of two neither is the usual one
    expected = rf"expected gradients of the same parameters on all processes, got others on rank {rank} "
    with pytest.raises(RuntimeError, match=r"AdamW\.step: grads: " + expected):
        optimizer.step()
    assert not optimizer.state
    with pytest.raises(RuntimeError, match="clip_grad_norm_: grads: " + expected):
        fusestep.nn.utils.clip_grad_norm_(shards, 1.0)


def nowhere_a_gradient():
    """Then there is nothing to do, but for the norm of nothing; and on a process outside of the mesh not even that."""
    _, shards = make_params()
    optimizer = fusestep.optim.AdamW(shards, max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == 0.0
    only = init_first_only()
    p = Parameter(distribute_tensor(torch.ones(4, 2), only, [Shard(0)], src_data_rank=None))
    p.grad = torch.ones_like(p)
    optimizer = fusestep.optim.AdamW([p], max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == (math.sqrt(8.0) if dist.get_rank() == 0 else 0.0)


@lru_cache(maxsize=1)
def init_first_only():
    return DeviceMesh("cpu", [0])
