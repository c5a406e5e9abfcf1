"""Tensors that are spread over processes, torch's DTensors: this process' part of each, and one norm for all of them.

What the norm of a whole model adds up: each element once, whichever processes hold it. A process sums up the elements
that it answers for, in double; one gathering over each mesh brings the sums to every process of it, and each adds them
up in the order of the processes. So all get the same bits, and the same answer to "is it finite?".
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fusestep import _core
from fusestep._refusal import refuse

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def _dtensor() -> Any:
    """The class DTensor; None as long as nobody has imported it, for then nothing is one."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def any_spread(tensors: Iterable[Tensor]) -> bool:
    """Whether there is a DTensor among them."""
    kind = _dtensor()
    return kind is not None and any(issubclass(t, kind) for t in set(map(type, tensors)))


def is_spread(tensor: Any) -> bool:
    kind = _dtensor()
    return kind is not None and isinstance(tensor, kind)


def whole(tensor: Tensor) -> Tensor:
    """A DTensor's whole tensor, for which all processes call this together; anything else as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]


def parts(tensors: Iterable[Any]) -> list[Any]:
    """This process' part of each DTensor, in the same memory; anything else as it is."""
    kind = _dtensor()
    if kind is None:
        return list(tensors)
    with torch.no_grad():
        local = [t.to_local() if isinstance(t, kind) else t for t in tensors]
    return [t.wait() if hasattr(t, "wait") else t for t in local]  # of a communication that is still under way


def meshes_of(tensors: Iterable[Tensor]) -> list[DeviceMesh]:
    """The meshes of the DTensors among them, smallest first: on all processes of a mesh in the same order."""
    meshes: dict[DeviceMesh, None] = {t.device_mesh: None for t in tensors if is_spread(t)}  # type: ignore[attr-defined]
    return sorted(meshes, key=lambda mesh: mesh.size())


class Whole(NamedTuple):
    """What all processes together know of a list of gradients."""

    totals: Tensor  # float64: parts of the norm's sum, for _core
    found_inf: Tensor  # of one element; not 0 where any process has found one
    shapes: list[tuple[ProcessGroup, Tensor]]  # by process: a number that stands for the shapes of its gradients

    def totals_on_host(self, operation: str) -> Tensor:
        """`totals` in CPU memory.

        Raises:
            RuntimeError: on all processes, where they brought different gradients.
        """
        for group, numbers in self.shapes:
            listed = numbers.tolist()
            if len(set(listed)) > 1:
                _refuse_ranks(operation, group, listed)
        return self.totals.cpu()


def _refuse_ranks(operation: str, group: ProcessGroup, listed: list[float]) -> NoReturn:
    import torch.distributed as dist

    usual = max(listed, key=listed.count)
    ranks = [str(dist.get_global_rank(group, i)) for i, number in enumerate(listed) if number != usual]
    refuse(
        operation,
        "grads",
        "gradients of the same parameters on all processes",
        f"others on rank {', '.join(ranks)} than on most",
        "Nothing was changed. All have to take the same part in a backward pass.",
        error=RuntimeError,
    )


def gather(
    operation: str,
    tensors: Sequence[Tensor],
    meshes: Sequence[DeviceMesh],
    norm_type: float,
    found_inf: Tensor | None = None,
) -> Whole:
    """The parts of the norm's sum over `tensors`, from all processes that hold any of them.

    A tensor that is not on a mesh counts as one that all its processes hold: plain tensors on every mesh, DTensors of
    a small mesh on every larger one. The first process of a mesh answers for these, so that a difference that should
    not be there makes no difference between the decisions.

    Args:
        tensors: sharded and replicated DTensors, and others.
        meshes: as `meshes_of` gives them, of the tensors of all processes: each is gathered over, also where this
            process has no tensor on it.
        norm_type: 1, 2 or inf.
        found_inf: this process' own, of one element. Default: None, it has found nothing.
    """
    like = found_inf if found_inf is not None else next(iter(tensors), torch.empty(0))
    device = like.device
    carried = _total(operation, [t for t in tensors if not is_spread(t)], norm_type, device)
    found = torch.zeros(1, dtype=torch.float64, device=device) if found_inf is None else found_inf.double().reshape(1)
    shapes: list[tuple[ProcessGroup, Tensor]] = []
    for mesh in meshes:
        if mesh.get_coordinate() is None:
            continue
        own = [t for t in tensors if is_spread(t) and t.device_mesh == mesh]  # type: ignore[attr-defined]
        total = _total(operation, parts(filter(_answers_for, own)), norm_type, device)
        number = hash(tuple(t.shape for t in own)) % 2**52  # exact in float64, the same in all processes
        for group in _groups(mesh):
            rows = _all_gather(mesh, group, torch.cat([found, found.new_full((1,), number), total, carried]))
            found = rows[:, 0].amax().reshape(1)
            shapes.append((group, rows[:, 1]))
            total, carried = rows[:, 2 : 2 + total.numel()].reshape(-1), rows[0, 2 + total.numel() :]
        carried = torch.cat([total, carried])
    return Whole(carried, found, shapes)


def _total(operation: str, tensors: list[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The sum of the norm before its root, in one element; on CUDA nobody waits for it."""
    if device.type == "cuda":
        total = torch.empty(1, dtype=torch.float64, device=device)
        if tensors:
            _core.grad_total(operation, tensors, norm_type, total)
        return total if tensors else total.zero_()
    return torch.tensor([_core.grad_total(operation, tensors, norm_type)], dtype=torch.float64)


def _answers_for(tensor: Any) -> bool:
    """Whether this process adds up its part: of the processes that hold the same elements the first one does."""
    coordinate = tensor.device_mesh.get_coordinate()
    return all(at == 0 for at, placement in zip(coordinate, tensor.placements, strict=True) if placement.is_replicate())


def _groups(mesh: DeviceMesh) -> list[ProcessGroup]:
    """Groups to gather over one after another, to have gathered over the mesh.

    One where a group is there that has all processes of the mesh; else one for each dimension.
    """
    import torch.distributed as dist

    if mesh.ndim > 1 and mesh.size() == dist.get_world_size() and dist.group.WORLD is not None:
        return [dist.group.WORLD]
    return mesh.get_all_groups()


def _all_gather(mesh: DeviceMesh, group: ProcessGroup, row: Tensor) -> Tensor:
    """(processes, elements of row), on the device of `row`; by way of the mesh's own device where that is another."""
    import torch.distributed as dist

    sent = row if row.device.type == mesh.device_type else row.to(mesh.device_type)
    rows = sent.new_empty(group.size(), sent.numel())
    dist.all_gather(list(rows.unbind()), sent, group=group)
    return rows.to(row.device)


def without_partial(tensor: Any) -> Any:
    """A DTensor whose parts are shards or replicas, no longer terms of a sum; anything else as it is."""
    if not is_spread(tensor) or not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
    with torch.no_grad():
        return tensor.redistribute(placements=placements)
