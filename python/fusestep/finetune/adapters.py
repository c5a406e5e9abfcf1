"""Bottleneck adapters (Houlsby et al., arXiv:1902.00751) and their fusion (Pfeiffer et al., arXiv:2005.00247)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusestep._refusal import check_integer, refuse
from fusestep.finetune.freezing import modules_named, train_only

_PLACES = "adapter_places"  # the module of the model that holds all adapters


class Adapter(nn.Module):
    """up(gelu(down(h))): h (..., width) -> what is added to h. Zero until it is trained."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.up(nn.functional.gelu(self.down(h)))
        return out


class Fusion(nn.Module):
    """Attention of one query over the outputs of N adapters, position by position.

    With h (..., width) the adapters' input and a_n their outputs: w = softmax_n(query(h) . key(h + a_n) / sqrt(width)),
    and the sum of w_n value(a_n) is added to h. value begins as the identity: at first a weighted mean of the adapters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.value.weight)

    def forward(self, h: Tensor, outputs: Tensor) -> Tensor:
        """h (..., width), outputs (..., N, width) -> (..., width)."""
        scores = (self.key(h.unsqueeze(-2) + outputs) @ self.query(h).unsqueeze(-1)).squeeze(-1)  # (..., N)
        weights = torch.softmax(scores / math.sqrt(h.shape[-1]), dim=-1)
        out: Tensor = (weights.unsqueeze(-1) * self.value(outputs)).sum(-2)
        return out


class Place(nn.Module):
    """The adapters behind one module of the model. A forward hook of that module; its names stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.fusion: Fusion | None = None
        self.active: tuple[str, ...] = ()

    def hook(self, _module: nn.Module, _inputs: Any, h: Tensor) -> Tensor:
        if not self.active:
            return h
        outputs = [self.adapters[name](h) for name in self.active]
        added: Tensor = outputs[0] if self.fusion is None else self.fusion(h, torch.stack(outputs, dim=-2))
        return h + added


def add_adapters(
    model: nn.Module, name: str, targets: Sequence[str] = ("attention", "mlp"), *, width: int, bottleneck: int = 64
) -> list[Adapter]:
    """Adds an adapter behind each module that ``targets`` names, and leaves only these to be trained.

    Stage 1 of a fusion is this function once for each task, with another ``name``: each adapter is trained alone, on
    the frozen model, and the others rest.

    model: any module whose targets return a tensor (..., width).
    name: of this set of adapters; a Python identifier that the model does not have yet.
    targets: ends of the names of the modules, in whole parts ("mlp" is "blocks.0.mlp", "blocks.1.mlp", ...).
    width: features of the targets' outputs. bottleneck: features between the two layers, >= 1.
    Returns the new adapters. Raises TypeError or ValueError, naming the argument; nothing has been changed then.
    """
    operation = "add_adapters"
    check_integer(operation, "width", width, 1)
    check_integer(operation, "bottleneck", bottleneck, 1)
    if not isinstance(name, str) or not name.isidentifier():
        refuse(operation, "name", "a Python identifier", repr(name))
    modules = modules_named(operation, model, targets)
    places = _places(model)
    if any(name in place.adapters for place in places.values()):
        refuse(operation, "name", "a new name", f"'{name}', which the model has")
    like = next(model.parameters(), None)
    added = []
    for module_name, module in modules.items():
        key = module_name.replace(".", "_")  # a name in a ModuleDict has no dots
        if key not in places:
            places[key] = Place()
            module.register_forward_hook(places[key].hook)
        adapter = Adapter(width, bottleneck)
        places[key].adapters[name] = adapter if like is None else adapter.to(like.device, like.dtype)
        added.append(adapter)
    model.add_module(_PLACES, nn.ModuleDict(places))
    for place in places.values():
        place.active, place.fusion = ((name,) if name in place.adapters else ()), None
    train_only(model, added)
    return added


def _places(model: nn.Module) -> dict[str, Place]:
    return dict(getattr(model, _PLACES, {}))


def fuse_adapters(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Stage 2: a fusion of the adapters ``names`` at each of their places; only the fusions are trained.

    Returns the fusions. Raises ValueError where the model has no such adapters at all their places, or names fewer
    than two; nothing has been changed then.
    """
    operation = "fuse_adapters"
    names = tuple(names)
    places = list(_places(model).values())
    known = sorted({name for place in places for name in place.adapters})
    if len(set(names)) < 2 or not set(names) <= set(known):
        refuse(operation, "names", f"two or more of {', '.join(known) or 'no adapters'}", ", ".join(names) or "none")
    used = [place for place in places if any(name in place.adapters for name in names)]
    if not all(name in place.adapters for place in used for name in names):
        refuse(operation, "names", "adapters at the same places", ", ".join(names), "Add them with the same targets.")
    fusions: list[nn.Module] = []
    for place in places:
        place.active, place.fusion = (), None
    for place in used:
        adapter: Any = place.adapters[names[0]]
        like = adapter.up.weight
        place.active, place.fusion = names, Fusion(adapter.up.out_features).to(like.device, like.dtype)
        fusions.append(place.fusion)
    train_only(model, fusions)
    return fusions
