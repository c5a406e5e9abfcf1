"""Multi-head attention as a module: torch's, by our kernels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusestep._refusal import refuse

from . import functional

_NAME = "MultiheadAttention"


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`: its constructor, its parameters and state dict, its results.

    The difference is in speed and memory (with masks and dropout together too, no matrix of scores is held, but for
    ``need_weights=True``), and in rows with nothing to attend to: their attention, and so their gradients, are zero,
    where torch gives NaN.

    Args:
        embed_dim: features of query and output, a multiple of num_heads.
        num_heads: heads, of embed_dim / num_heads features each (256 at most).
        dropout: probability with which weights are dropped in training, in [0, 1].
        bias: whether the projections have one.
        add_bias_kv: append a learned key and value to each sequence.
        add_zero_attn: append a key and value of zeros to each sequence.
        kdim, vdim: features of key and value; default embed_dim.
        batch_first: tensors are (N, L, E) instead of (L, N, E).
        device, dtype: of the parameters.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of each query over the keys.

        Args:
            query: (L, N, embed_dim), (N, L, embed_dim) with batch_first, or (L, embed_dim).
            key, value: the same with S for L, and kdim and vdim features.
            key_padding_mask: (N, S), or (S,): boolean with True for keys to be ignored, or floating, added to the
                scores.
            need_weights: also return the weights. False is faster, and needs no memory for them.
            attn_mask: (L, S) or (N * num_heads, L, S): boolean with True where a query must NOT attend, or floating,
                added to the scores.
            average_attn_weights: average the returned weights over the heads.
            is_causal: query i attends to keys up to i. As in torch it stands for the attn_mask that says so, which is
                then not looked at; unlike in torch, that one may be left out.

        Returns:
            The output, shaped as query, and the weights (after dropout), (N, L, S) or (N, num_heads, L, S) (without N
            for unbatched inputs), or None.

        Raises:
            TypeError, ValueError: an argument that cannot be taken.
        """
        batched = query.dim() == 3
        if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
            shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
            refuse(_NAME, "query, key, value", "all with 3 dimensions, or 2 when unbatched", f"shapes {shapes}")
        for name, tensor, features in (
            ("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim),
        ):  # fmt: skip
            if tensor.shape[-1] != features:
                refuse(_NAME, name, f"{features} features", f"shape {tuple(tensor.shape)}")
        # Now all to (N, H, L, D), as views.
        q, k, v = (self._heads(x, batched) for x in self._project(query, key, value))
        if k.shape[2] != v.shape[2] or not q.shape[0] == k.shape[0] == v.shape[0]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
            refuse(_NAME, "value", "as many positions as key, and one batch size for all", f"shapes {shapes}")
        mask = self._mask(q, k.shape[2], key_padding_mask, None if is_causal else attn_mask)
        if self.bias_k is not None or self.add_zero_attn:
            k, v, appended = self._append(k, v)
            if is_causal:  # what is appended lies after all queries, and all see it
                causal = torch.ones(q.shape[2], k.shape[2] - appended, dtype=torch.bool, device=q.device).tril()
                mask, is_causal = _both(causal, mask), False
            if mask is not None:
                mask = F.pad(mask, (0, appended), value=mask.dtype == torch.bool)
        dropout_p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1)
            scale = 1 / math.sqrt(self.head_dim)
            weights = functional.masked_softmax(scores, mask=mask, causal=is_causal, scale=scale, dropout_p=dropout_p)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            mixed = functional.attention(q, k, v, mask=mask, causal=is_causal, dropout_p=dropout_p)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (N, L, E)
        if not batched:
            return out.squeeze(0), weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if self._qkv_same_embed_dim:
            if query is key is value:
                return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        heads = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        if not batched:
            heads = heads.unsqueeze(0)
        elif not self.batch_first:
            heads = heads.transpose(0, 1)
        return heads.transpose(1, 2)

    def _append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with what the constructor asked to append, and how many there are of it."""
        ks, vs = [k], [v]
        one = (k.shape[0], self.num_heads, 1, self.head_dim)
        if self.bias_k is not None and self.bias_v is not None:
            ks.append(self.bias_k.view(1, self.num_heads, 1, self.head_dim).expand(one).to(k.dtype))
            vs.append(self.bias_v.view(1, self.num_heads, 1, self.head_dim).expand(one).to(v.dtype))
        if self.add_zero_attn:
            ks.append(k.new_zeros(one))
            vs.append(v.new_zeros(one))
        return torch.cat(ks, dim=2), torch.cat(vs, dim=2), len(ks) - 1

    def _mask(self, q: Tensor, keys: int, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Both masks in one that broadcasts to (N, H, L, S), boolean with True = attend, or additive."""
        batch, heads, queries, _ = q.shape
        if attn_mask is not None:
            shapes = ((queries, keys), (batch * heads, queries, keys))
            _check_mask("attn_mask", attn_mask, *shapes)
            attn_mask = attn_mask if attn_mask.dim() == 2 else attn_mask.view(batch, heads, queries, keys)
        if padding is not None:
            _check_mask("key_padding_mask", padding, *([(batch, keys)] if batch != 1 else [(1, keys), (keys,)]))
            padding = padding.view(batch, 1, 1, keys)
        present = [~mask if mask.dtype == torch.bool else mask for mask in (attn_mask, padding) if mask is not None]
        return _both(present[0], present[1]) if len(present) == 2 else present[0] if present else None


def _check_mask(name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
    if tuple(mask.shape) not in shapes:
        refuse(_NAME, name, "shape " + " or ".join(map(str, shapes)), str(tuple(mask.shape)))
    if mask.dtype != torch.bool and not mask.is_floating_point():
        refuse(_NAME, name, "a boolean or floating mask", str(mask.dtype), error=TypeError)


def _both(first: Tensor, second: Tensor | None) -> Tensor:
    """The mask that allows what both allow; boolean ones (True = attend) become 0 and -inf beside additive ones."""
    if second is None:
        return first
    if first.dtype == torch.bool and second.dtype == torch.bool:
        return first & second
    if second.dtype == torch.bool:
        first, second = second, first
    return torch.where(first, second, -math.inf) if first.dtype == torch.bool else first + second
