"""DTensors in an optimizer: what the core is given of them, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusestep import _mesh
from fusestep._refusal import refuse

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fusestep._core import Group


def meshes(groups: Sequence[dict[str, Any]]) -> list[DeviceMesh]:
    """The meshes over which any parameter is spread, with a gradient or without; of most optimizers none."""
    members = [group["params"] for group in groups]
    if not _mesh.any_spread(chain.from_iterable(members)):
        return []
    return _mesh.meshes_of(chain.from_iterable(members))


def placed(
    operation: str,
    groups: Sequence[dict[str, Any]],
    params: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    rewritten: bool,
) -> list[list[Tensor]]:
    """The gradients, each placed as its parameter is: redistributed where it is not, as torch's operators do.

    Raises:
        ValueError: moments in 8 bits, a parameter that is a partial sum, a gradient that is no DTensor or on another
            mesh, and, where gradients are `rewritten`, one of another placement.
    """
    result: list[list[Tensor]] = []
    for group, members, gradients in zip(groups, params, grads, strict=True):
        if group.get("state_dtype") == "8bit" and _mesh.any_spread(members):
            remedy = "Its blocks of 256 elements do not follow the shards: take torch.bfloat16."
            refuse(operation, "state_dtype", "a dtype, where parameters are DTensors", '"8bit"', remedy)
        own: list[Tensor] = []
        for p, g in zip(members, gradients, strict=True):
            if _mesh.is_spread(p) and not _agrees(p, g):
                g = _redistributed(operation, _name("grads", groups, group, p), p, g, rewritten)
            own.append(g)
        result.append(own)
    return result


def _agrees(param: Any, other: Any) -> bool:
    """Whether `other` is placed as the DTensor `param` is, and that in a way that can be updated."""
    return (
        _mesh.is_spread(other)
        and (other.device_mesh is param.device_mesh or other.device_mesh == param.device_mesh)
        and other.placements == param.placements
        and not any(placement.is_partial() for placement in param.placements)
    )


def _redistributed(operation: str, argument: str, param: Any, grad: Any, rewritten: bool) -> Tensor:
    if any(placement.is_partial() for placement in param.placements):
        remedy = "A partial sum cannot be updated element by element: redistribute the parameter."
        refuse(operation, argument.replace("grads", "params"), "shards or replicas", _placed_as(param), remedy)
    if not _mesh.is_spread(grad):
        expected = f"a DTensor as its parameter is, {_placed_as(param)}"
        refuse(operation, argument, expected, f"a {type(grad).__name__} of shape {tuple(grad.shape)}")
    if grad.device_mesh != param.device_mesh:
        expected = f"the mesh of its parameter, {param.device_mesh}"
        refuse(operation, argument, expected, str(grad.device_mesh), "Redistribute it before the step.")
    if rewritten:
        expected = f"the placement of its parameter, {_placed_as(param)}"
        refuse(operation, argument, expected, _placed_as(grad), "rewrite_grads=True needs it, to write them in place.")
    with torch.no_grad():
        return grad.redistribute(placements=param.placements)  # type: ignore[no-any-return]


def _placed_as(tensor: Any) -> str:
    return ", ".join(map(str, tensor.placements))


def _name(name: str, groups: Sequence[dict[str, Any]], group: dict[str, Any], param: Tensor) -> str:
    """`name` of a parameter, as the core writes it: "grads[3]", or "groups[1].grads[3]" where there are several."""
    i = next(i for i, p in enumerate(group["params"]) if p is param)
    if len(groups) == 1:
        return f"{name}[{i}]"
    return f"groups[{next(k for k, other in enumerate(groups) if other is group)}].{name}[{i}]"


def local(operation: str, groups: Sequence[dict[str, Any]], names: Sequence[str], work: Sequence[Group]) -> list[Group]:
    """What is to be done with this process' part of each tensor.

    Raises:
        ValueError: a state or a companion that is not placed as its parameter is.
    """
    result: list[Group] = []
    for group, (options, params, grads, states, steps, companions, numbers) in zip(groups, work, strict=True):
        columns = dict(zip(names, states, strict=True)) | {"what the rounding keeps": companions}
        for name, column in columns.items():
            for p, kept in zip(params, column or (), strict=column is not None):
                spread = _mesh.is_spread(p)
                if spread != _mesh.is_spread(kept) or (spread and not _agrees(p, kept)):
                    refuse(
                        operation,
                        f"{name} of {_name('params', groups, group, p)}",
                        f"a DTensor as its parameter is, {_placed_as(p)}"
                        if spread
                        else "no DTensor, nor is its parameter",
                        _placed_as(kept) if _mesh.is_spread(kept) else f"a tensor of shape {tuple(kept.shape)}",
                        "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict places what it loads.",
                    )
        result.append(
            (
                options,
                _mesh.parts(params),
                _mesh.parts(grads),
                tuple(None if column is None else _mesh.parts(column) for column in states),
                steps if isinstance(steps, int) else _mesh.parts(steps),
                None if companions is None else _mesh.parts(companions),
                None if numbers is None else _numbered(operation, groups, group, params, numbers),
            )
        )
    return result


def _numbered(
    operation: str,
    groups: Sequence[dict[str, Any]],
    group: dict[str, Any],
    params: Sequence[Any],
    numbers: Sequence[int],
) -> list[int | tuple[int, int, int, int]]:
    """What stochastic rounding counts by: of a shard also where its elements are among those of the whole parameter."""
    result: list[int | tuple[int, int, int, int]] = []
    for p, number in zip(params, numbers, strict=True):
        if not _mesh.is_spread(p) or p.device_mesh.get_coordinate() is None:
            result.append(number)
            continue
        positions = _positions(tuple(p.shape), p.device_mesh, p.placements)
        if positions is None:
            refuse(
                operation,
                _name("params", groups, group, p),
                'with rounding="stochastic" a shard along the first dimension and at most one more, in one piece',
                f"shape {tuple(p.shape)} placed as {_placed_as(p)}",
                'Place it in another way, or take rounding="kahan".',
            )
        result.append((number, *positions))
    return result


@lru_cache(maxsize=4096)
def _positions(shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Any, ...]) -> tuple[int, int, int] | None:
    """Where this process' shard is in the whole, for ShardPositions of cpp/math/rounding.h: (first, run, pitch).

    None: its elements are no equally long runs at equal distances.
    """
    first, stride = 0, 1
    # Of the shard, from the last dimension on: (size, distance of neighbours in the whole), merged where it goes on.
    steps: list[tuple[int, int]] = [(1, 1)]
    for dim in reversed(range(len(shape))):
        indices = _indices(shape[dim], dim, mesh, placements)
        if not indices:
            return 0, 1, 0  # no element
        if indices[-1] - indices[0] != len(indices) - 1:
            return None
        first += indices[0] * stride
        size, distance = steps[-1]
        if size * distance == stride:
            steps[-1] = (size * len(indices), distance)
        elif len(indices) > 1:
            steps.append((len(indices), stride))
        stride *= shape[dim]
    if len(steps) > 2:
        return None
    return first, steps[0][0], steps[1][1] if len(steps) == 2 else 0


def _indices(size: int, dim: int, mesh: DeviceMesh, placements: tuple[Any, ...]) -> list[int]:
    """Which indices along `dim` this process holds: torch itself shards them, as if there were no other dimension."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    along = [
        _of_first_dim(placement) if getattr(placement, "dim", None) == dim else Replicate() for placement in placements
    ]
    indices = torch.arange(size, device=mesh.device_type)
    return distribute_tensor(indices, mesh, along, src_data_rank=None).to_local().tolist()


def _of_first_dim(placement: Any) -> Any:
    from torch.distributed.tensor import Shard

    split_factor = getattr(
        placement, "split_factor", None
    )  # of the placements that FSDP2 gives what is sharded already
    return Shard(0) if split_factor is None else type(placement)(0, split_factor=split_factor)
