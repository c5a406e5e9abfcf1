"""Which parameters are trained, and which parts of a model are meant by a name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusestep._refusal import did_you_mean, refuse


def train_only(model: nn.Module, trained: Sequence[nn.Module]) -> None:
    """Of all parameters of ``model`` those inside ``trained`` require a gradient from now on, the others none."""
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)


def trained_share(model: nn.Module) -> float:
    """The share of the parameters of ``model`` that require a gradient, counted in elements: 0 to 1.

    Raises ValueError for a model without parameters.
    """
    total = sum(p.numel() for p in model.parameters())
    if not total:
        refuse("trained_share", "model", "parameters", "none")
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / total


def modules_named(operation: str, model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose names end in one of ``targets`` (whole parts: "mlp" is "blocks.0.mlp"), by their names.

    Raises TypeError for a string in place of a sequence, ValueError for a target that no module has.
    """
    if isinstance(targets, str):
        refuse(operation, "targets", "a sequence of names", repr(targets), f"Pass [{targets!r}].", TypeError)
    named = dict(model.named_modules())
    found = {}
    for target in targets:
        matching = {name: module for name, module in named.items() if ("." + name).endswith("." + target)}
        if not matching:
            known = sorted({name.rpartition(".")[2] for name in named if name})
            refuse(operation, "targets", "the end of a module's name", repr(target), did_you_mean(target, known))
        found.update(matching)
    return found
