"""Sharded models (``fully_shard``) and checkpoints: whole tensors there, shards here, whatever their number.

``torch.distributed.tensor`` and ``fsdp`` take a second to import: only where a model is sharded, they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusestep._mesh import any_spread, is_spread


def shard(model: nn.Module) -> None:
    """FSDP2 over all processes: each layer in a ``ModuleList`` is gathered when its turn comes, the rest together."""
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer)
    fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    return any_spread(model.parameters())


def exchange_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass of a sharded model sends its gradients, or adds them up where they are."""
    if not is_sharded(model):
        return
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def whole(tree: Any) -> Any:
    """``tree`` with whole tensors, in CPU memory, for its sharded ones. All processes call it together."""
    if is_spread(tree):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(whole(value) for value in tree)
    return tree


def as_placed(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The whole tensors of ``saved``, sharded as those of the same name in ``own``."""
    return {name: _placed(tensor, own[name]) for name, tensor in saved.items()}


def optimizer_state_as_placed(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict ``saved`` with what has a parameter's shape sharded as the parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: _placed(value, parameters[number]) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    return {**saved, "state": state}


def _placed(value: Any, like: Any) -> Any:
    if not is_spread(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the whole: there is nothing to send.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
