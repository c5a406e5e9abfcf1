"""LoRA (Hu et al., arXiv:2106.09685), by the library peft."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusestep._refusal import check_integer, check_number, refuse
from fusestep.finetune.freezing import modules_named


def add_lora(model: nn.Module, targets: Sequence[str], *, rank: int = 8, alpha: int = 16, dropout: float = 0.0) -> None:
    """Adds alpha / rank * B A to the weight of each linear layer that ``targets`` names; only A and B are trained.

    A (rank, in) is drawn from N(0, 1 / rank^2), B (out, rank) is zero: at first nothing is added. The layers become
    peft's, whose documentation has more.

    model: any module.
    targets: ends of the names of linear layers, in whole parts ("qkv" is "blocks.0.attention.qkv", ...).
    rank, alpha: >= 1. dropout: of the input of A, in [0, 1).
    Raises TypeError or ValueError, naming the argument; ImportError, with the remedy, when peft is missing.
    """
    operation = "add_lora"
    check_integer(operation, "rank", rank, 1)
    check_integer(operation, "alpha", alpha, 1)
    check_number(operation, "dropout", dropout, 0.0, 1.0)
    for name, module in modules_named(operation, model, targets).items():
        if not isinstance(module, nn.Linear):
            refuse(operation, "targets", "linear layers", f"{name}, a {type(module).__name__}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as missing:
        raise ImportError("LoRA needs peft: pip install 'fusestep[finetune]'") from missing

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), init_lora_weights="gaussian"
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Adds alpha / rank * B A to the weights for good, and puts the plain linear layers back: no layer costs more.

    Raises ValueError for a model without LoRA; ImportError, with the remedy, when peft is missing.
    """
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError as missing:
        raise ImportError("LoRA needs peft: pip install 'fusestep[finetune]'") from missing

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not layers:
        refuse("merge_lora", "model", "a model with LoRA", "one without", "add_lora makes one.")
    for name, layer in layers.items():
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
