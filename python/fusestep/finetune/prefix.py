"""Prefix tuning: trained keys and values that every position attends to (Li and Liang, arXiv:2101.00190)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusestep._refusal import check_integer, refuse
from fusestep.finetune.freezing import train_only
from fusestep.models.gpt import GPT, SelfAttention


class Prefix(nn.Module):
    """``length`` keys and values of each head, and a gate a head, which begins at zero.

    The gate (LLaMA-Adapter, arXiv:2303.16199) is what makes the model begin as it was: in one softmax with the other
    keys, any prefix would take weight from them.
    """

    def __init__(self, length: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.randn(1, heads, length, head_dim))  # (1, H, length, D)
        self.value = nn.Parameter(torch.randn(1, heads, length, head_dim))
        self.gate = nn.Parameter(torch.zeros(1, heads, 1, 1))

    def forward(self, query: Tensor, attention: Callable[..., Tensor]) -> Tensor:
        """query (B, H, Sq, D) -> (B, H, Sq, D): what is added to the attention over the text."""
        shape = (query.shape[0], *self.key.shape[1:])
        return torch.tanh(self.gate) * attention(query, self.key.expand(shape), self.value.expand(shape))


def add_prefix(model: GPT, length: int = 16) -> list[Prefix]:
    """Adds a prefix of ``length`` positions to each attention of ``model``, and leaves only these to be trained.

    Queries look at it before they are turned by their positions: the prefix has no place in the text. For models of
    transformers, peft has prefix tuning: ``peft.PrefixTuningConfig``.

    Returns the prefixes, one a block. Raises TypeError or ValueError for another model, a length below 1, or a model
    that has a prefix; nothing has been changed then.
    """
    if not isinstance(model, GPT):
        remedy = "For models of transformers: peft.PrefixTuningConfig."
        refuse("add_prefix", "model", "a fusestep.models.GPT", type(model).__name__, remedy, TypeError)
    check_integer("add_prefix", "length", length, 1)
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    if any(attention.prefix is not None for attention in attentions):
        refuse("add_prefix", "model", "a model without a prefix", "one that has one")
    config, like = model.config, model.tokens.weight
    prefixes = []
    for attention in attentions:
        prefix = Prefix(length, config.heads, config.width // config.heads)
        attention.prefix = prefix.to(like.device, like.dtype)
        prefixes.append(prefix)
    train_only(model, prefixes)
    return prefixes
