"""A small model trained under FSDP2, and tensor parallelism, beside the same model in a single process."""

from __future__ import annotations

import cases
import torch
import torch.distributed as dist
from sharded_checks import assert_equal, gathered, meshes
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch_pairs import ours, theirs

STEPS = 3
BATCH = 8
MAX_NORM = 0.05  # of gradients whose norm is above it
EPS = torch.finfo(torch.float32).eps


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Embedding(13, width)  # uneven over two processes and over four
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.head = nn.Linear(width, 3)  # of four processes the last has nothing

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x).square().mean()


def make(dtype=torch.float32):
    torch.manual_seed(3)
    return Model().to(dtype)


def tokens(step):
    return torch.randint(13, (BATCH, 5), generator=torch.Generator().manual_seed(step))


def shard(model, layout):
    """Returns this process' number among those that see different data, and how many those are."""
    if layout == "tensor parallel":
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        for block in model.blocks:
            parallelize_module(block, meshes()["table"]["tp"], plan)
    mesh = {"tensor parallel": meshes()["table"]["dp"], "replicas": meshes()["table"]}.get(layout, meshes()["row"])
    options = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if layout == "offload" else {}
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    if layout == "tensor parallel":
        return mesh.get_local_rank(), mesh.size()
    return dist.get_rank(), dist.get_world_size()


def train(model, optimizer, rank=0, size=1, clip=None, steps=range(STEPS)):
    rows = BATCH // size
    for step in steps:
        model(tokens(step)[rank * rows : (rank + 1) * rows]).backward()
        if clip is not None:
            assert gathered(clip(model.parameters(), MAX_NORM)) > MAX_NORM
        optimizer.step()
        optimizer.zero_grad()


def whole(model):
    return {name: gathered(p.detach()).double() for name, p in model.named_parameters()}


def torch_clips(parameters, max_norm):
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def trains_as_a_single_process(name, options, layout):
    """After a few steps: as near to float64 as torch's float32, in one process and, where its clipping can, sharded."""
    row = cases.BY_NAME[name]
    exact = make(torch.float64)
    train(exact, theirs(row)(exact.parameters(), **options), clip=torch_clips)
    alone = make()
    train(alone, theirs(row)(alone.parameters(), **options), clip=torch_clips)
    peers = [whole(alone)]
    if layout != "tensor parallel":  # torch clips over one mesh alone
        sharded = make()
        where = shard(sharded, layout)
        train(sharded, theirs(row)(sharded.parameters(), **options), *where, clip=torch_clips)
        peers.append(whole(sharded))

    model = make()
    where = shard(model, layout)
    optimizer = ours(row)(model.parameters(), **options, max_grad_norm=MAX_NORM)
    train(model, optimizer, *where)
    assert optimizer.grad_norm > MAX_NORM
    got, expected = whole(model), whole(exact)

    def error(run):
        return max(float((run[key] - value).abs().max()) for key, value in expected.items())

    largest = max(float(value.abs().max()) for value in expected.values())
    assert error(got) <= 2 * max(map(error, peers)) + 4 * EPS * largest, (error(got), list(map(error, peers)))


def assert_same_states(model, optimizer, other_model, other):
    """The same states, bit for bit, placed alike where both are sharded; over all processes."""
    names = [name for name, _ in model.named_parameters()]
    for name, p, q in zip(names, model.parameters(), other_model.parameters(), strict=True):
        kept, expected = optimizer.state[p], other.state[q]
        assert kept.keys() == expected.keys(), name
        for key, value in expected.items():
            if value is None:
                assert kept[key] is None
            else:
                assert_equal(kept[key], gathered(value), f"{key} of {name}")
            if key != "step" and isinstance(kept[key], DTensor):
                assert (kept[key].device_mesh, kept[key].placements) == (p.device_mesh, p.placements)


def states_are_exchanged(name, options):
    """Between torch's optimizer and ours, by state_dict() and by the helpers of torch.distributed.checkpoint."""
    row = cases.BY_NAME[name]
    for first, second in ((ours, theirs), (theirs, ours)):
        model, other_model = make(), make()
        where = shard(model, "replicas")
        shard(other_model, "replicas")
        optimizer, other = (kind(row)(m.parameters(), **options) for kind, m in ((first, model), (second, other_model)))
        train(model, optimizer, *where, steps=range(2))
        other.load_state_dict(optimizer.state_dict())
        assert_same_states(other_model, other, model, optimizer)
        train(other_model, other, *where, steps=range(2, 3))

        # Sharded as it is, to the same layout and to another one; then whole, to a single process.
        third_model = make()
        shard(third_model, "shards")
        third = second(row)(third_model.parameters(), **options)
        for full in (False, True):
            # From the first process: where each reads it, torch's helper trips over options that the target has not.
            settings = StateDictOptions(full_state_dict=full, broadcast_from_rank0=full)
            saved = get_optimizer_state_dict(model, optimizer, options=settings)
            set_optimizer_state_dict(other_model, other, saved, options=settings)
            assert_same_states(other_model, other, model, optimizer)
            if full:
                set_optimizer_state_dict(third_model, third, saved, options=settings)
                assert_same_states(third_model, third, model, optimizer)
                alone = make()
                whole_optimizer = second(row)(alone.parameters(), **options)
                set_optimizer_state_dict(alone, whole_optimizer, saved)
                assert_same_states(alone, whole_optimizer, model, optimizer)
