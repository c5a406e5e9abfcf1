"""DTensors in an optimizer: what the core is given of them, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fusestep import _mesh
from fusestep._refusal import refuse

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The options of a group, its parameters, gradients, states, step counts, companions (what the rounding keeps beside the
# parameters) and the positions of the parameters among all: what _core.optimizer_step takes.
Group: TypeAlias = tuple[
    Mapping[str, Any],
    Sequence[Any],
    Sequence[Any],
    tuple[Sequence[Any] | None, ...],
    int | Sequence[Any],
    Sequence[Any] | None,
    Sequence[Any] | None,
]


def meshes(groups: Sequence[dict[str, Any]]) -> list[DeviceMesh]:
    """The meshes over which any parameter is spread, with a gradient or without; of most optimizers none."""
    params = list(chain.from_iterable(group["params"] for group in groups))
    return _mesh.meshes_of(params) if _mesh.any_spread(params) else []


def placed(
    operation: str,
    groups: Sequence[dict[str, Any]],
    params: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    rewritten: bool,
) -> list[list[Tensor]]:
    """The gradients, each placed as its parameter is: redistributed where it is not, as torch's operators do.

    Raises:
        ValueError: a parameter that is a partial sum, a gradient that is no DTensor or on another mesh, and, where
            gradients are `rewritten`, one of another placement.
    """
    result: list[list[Tensor]] = []
    for group, members, gradients in zip(groups, params, grads, strict=True):
        own: list[Tensor] = []
        for p, g in zip(members, gradients, strict=True):
            if _mesh.is_spread(p) and not _agrees(p, g):
                g = _redistributed(operation, _name("grads", groups, group, p), p, g, rewritten)
            own.append(g)
        result.append(own)
    return result


def _agrees(param: Any, grad: Any) -> bool:
    return (
        _mesh.is_spread(grad)
        and (grad.device_mesh is param.device_mesh or grad.device_mesh == param.device_mesh)
        and grad.placements == param.placements
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
                if (_mesh.is_spread(p) or _mesh.is_spread(kept)) and not _agrees(p, kept):
                    refuse(
                        operation,
                        f"{name} of {_name('params', groups, group, p)}",
                        f"a DTensor as its parameter is, {_placed_as(p)}" if _mesh.is_spread(p) else "no DTensor",
                        _placed_as(kept) if _mesh.is_spread(kept) else f"a tensor of shape {tuple(kept.shape)}",
                        "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict places what it loads.",
                    )
        result.append(
            (
                options,
                _parts(params),
                _parts(grads),
                tuple(None if column is None else _parts(column) for column in states),
                steps if isinstance(steps, int) else _parts(steps),
                None if companions is None else _parts(companions),
                None if numbers is None else [_numbered(p, n) for p, n in zip(params, numbers, strict=True)],
            )
        )
    return result


def _parts(tensors: Sequence[Any]) -> list[Any]:
    return list(map(_mesh.local, tensors))


def _numbered(param: Any, number: int) -> int | tuple[int, int, int, int]:
    """What stochastic rounding counts by: of a shard also where its elements are among those of the whole parameter."""
    if not _mesh.is_spread(param) or param.device_mesh.get_coordinate() is None:
        return number
    return (number, *_positions(tuple(param.shape), param.device_mesh, param.placements))


@lru_cache(maxsize=4096)
def _positions(shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Any, ...]) -> tuple[int, int, int]:
    """Element e of this process' shard is element ``first + e // run * pitch + e % run`` of the whole, in C order.

    Returns (first, run, pitch).
    """
    first, stride = 0, 1
    # The dimensions of the shard, the last first: (size, distance of neighbours), merged where runs continue.
    steps: list[tuple[int, int]] = []
    for dim in reversed(range(len(shape))):
        indices = _indices(shape[dim], dim, mesh, placements)
        if not indices:
            return 0, 1, 0
        contiguous = indices[-1] - indices[0] == len(indices) - 1
        first += indices[0] * stride
        if len(indices) > 1:
            if steps and contiguous and steps[-1][0] * steps[-1][1] == stride:
                steps[-1] = (steps[-1][0] * len(indices), steps[-1][1])
            else:
                steps.append((len(indices), stride))
            if not contiguous or len(steps) > 2 or (len(steps) == 2 and steps[0][1] != 1):
                refuse(
                    "rounding",
                    "params",
                    'with "stochastic" shards along the first dimension and along one more, in one piece',
                    f"shape {shape} placed {', '.join(map(str, placements))}",
                )
        stride *= shape[dim]
    if not steps:
        return first, 1, 0
    if steps[0][1] != 1:
        return first, 1, steps[0][1]
    return first, steps[0][0], steps[1][1] if len(steps) == 2 else 0


def _indices(size: int, dim: int, mesh: DeviceMesh, placements: tuple[Any, ...]) -> list[int]:
    """Which indices along `dim` this process holds: torch itself shards them."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    # As if the other dimensions were not there, and this one were the only one.
    along = [
        _moved(placement, 0) if getattr(placement, "dim", None) == dim else Replicate() for placement in placements
    ]
    indices = torch.arange(size, device=mesh.device_type)
    return distribute_tensor(indices, mesh, along, src_data_rank=None).to_local().tolist()


def _moved(placement: Any, dim: int) -> Any:
    from torch.distributed.tensor import Shard

    split_factor = getattr(placement, "split_factor", None)
    return Shard(dim) if split_factor is None else type(placement)(dim, split_factor=split_factor)
