"""A small decoder-only transformer over bytes: pre-norm blocks, rotary positions, weight-tied head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusestep.nn.functional as fused
from fusestep._refusal import check_choice, check_integer, check_number, refuse
from fusestep.nn.init import init_weights_, scale_residual_branches_


@dataclass(frozen=True)
class Kernels:
    """What computes attention and dropout. The signatures are those of fusestep.nn.functional."""

    scaled_dot_product_attention: Callable[..., Tensor]
    dropout: Callable[..., Tensor]
    dropout_add: Callable[..., Tensor]


def _torch_dropout_add(x: Tensor, residual: Tensor, p: float, training: bool) -> Tensor:
    return residual + F.dropout(x, p, training)


KERNELS = {
    "fusestep": Kernels(fused.scaled_dot_product_attention, fused.dropout, fused.dropout_add),
    "torch": Kernels(F.scaled_dot_product_attention, F.dropout, _torch_dropout_add),
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a ``GPT``. The defaults give 0.8 million parameters, a size that a CPU trains in a minute or two."""

    vocabulary: int = 256  # tokens: the bytes
    context: int = 128  # the most positions the model can look at
    layers: int = 4  # transformer blocks
    heads: int = 4  # attention heads a block; divides width
    width: int = 128  # features a position
    dropout: float = 0.1  # of the embedding, the attention weights and each residual branch; in [0, 1)
    kernels: str = "fusestep"  # whose attention and dropout: one of KERNELS

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            check_integer("GPTConfig", name, getattr(self, name), 1)
        check_number("GPTConfig", "dropout", self.dropout, 0.0, 1.0)
        check_choice("GPTConfig", "kernels", self.kernels, KERNELS)
        if self.width % (2 * self.heads):  # each head's features are rotated in pairs
            refuse("GPTConfig", "width", f"a multiple of 2 * heads = {2 * self.heads}", str(self.width))


class Rotary(nn.Module):
    """Rotary positions (Su et al., arXiv:2104.09864): x (..., S, D) -> the same shape.

    The D/2 pairs of features are turned by angles that grow with the position, each pair at its own pace, so
    that scores depend on distances and not on places. Learned positions have to be learned one by one: 120 steps
    of the default training brought them to 2.33 nats a byte, and these to 2.15.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, features: int) -> None:
        super().__init__()
        paces = 10000.0 ** (-torch.arange(0, features, 2) / features)
        angles = torch.arange(context)[:, None] * paces
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class SelfAttention(nn.Module):
    """Causal multi-head self-attention: (B, S, width) -> (B, S, width)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention = KERNELS[config.kernels].scaled_dot_product_attention
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.rotary = Rotary(config.context, config.width // config.heads)
        self.out = nn.Linear(config.width, config.width)
        self.prefix: nn.Module | None = None  # fusestep.finetune.add_prefix

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # split and not slices: the gradients of slices are filled up with zeros and added.
        turning, value = qkv.split([2, 1])
        query, key = self.rotary(turning)
        dropout_p = self.dropout if self.training else 0.0
        mixed = self.attention(query, key, value.squeeze(0), dropout_p=dropout_p, is_causal=True)
        if self.prefix is not None:
            mixed = mixed + self.prefix(turning[0], self.attention)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(mlp(norm(x)))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )
        self.dropout = config.dropout
        self.dropout_add = KERNELS[config.kernels].dropout_add

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout_add(self.attention(self.norm1(x)), x, self.dropout, self.training)
        return self.dropout_add(self.mlp(self.norm2(x)), x, self.dropout, self.training)


class GPT(nn.Module):
    """Next-token logits: tokens (B, S) int64 with S <= context -> (B, S, vocabulary).

    The weights are drawn from torch's global generator: ``torch.manual_seed`` first makes them repeatable.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.dropout = KERNELS[config.kernels].dropout
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        init_weights_(self)  # Xavier, and He before the GELU
        # The residual stream begins as the embedding, which must not drown in what the blocks, still random,
        # add to it; but the head reads through it too, and longer rows would make the first guesses too sure.
        nn.init.normal_(self.tokens.weight, std=0.1)
        scale_residual_branches_(self, ("attention.out.weight", "mlp.2.weight"), self.config.layers)

    @torch.no_grad()
    def check_kernels(self) -> None:
        """Refuses now what ``forward`` would refuse of the device and dtype of the weights.

        Raises:
            TypeError, ValueError: of the attention kernels, in their words.
        """
        weight = self.tokens.weight
        shape = (1, self.config.heads, 0, self.config.width // self.config.heads)
        nothing = torch.empty(shape, dtype=weight.dtype, device=weight.device)  # no DTensor, even of a sharded weight
        KERNELS[self.config.kernels].scaled_dot_product_attention(nothing, nothing, nothing, is_causal=True)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[-1]
        if length > self.config.context:
            refuse("GPT", "tokens", f"at most context = {self.config.context} positions", str(length))
        x = self.dropout(self.tokens(tokens), self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)

    @torch.no_grad()
    def generate(
        self, prompt: bytes, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> bytes:
        """``prompt`` and ``count`` more bytes, each drawn from softmax(logits / temperature).

        ``prompt`` holds at least one byte. ``generator`` (on the CPU) makes the draw repeatable.
        """
        check_integer("GPT.generate", "count", count, 0)
        check_number("GPT.generate", "temperature", temperature, 0.0, exclusive=True)
        if not prompt:
            refuse("GPT.generate", "prompt", "at least one byte", "none")
        was_training = self.training
        self.eval()
        text = list(prompt)
        for _ in range(count):
            window = torch.tensor([text[-self.config.context :]], device=self.tokens.weight.device)
            weights = torch.softmax(self(window)[0, -1].double() / temperature, dim=-1)
            text.append(int(torch.multinomial(weights.cpu(), 1, generator=generator)))
        self.train(was_training)
        return bytes(text)
