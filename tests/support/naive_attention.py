"""Attention as a textbook has it, in torch: the scores of all queries and keys at once, gradients by autograd.

It knows nothing of the reference or of the kernels but the rule by which weights are dropped. It judges the reference
(in float64), and its error in a 16-bit dtype is the measure of the kernels' error there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from attention_cases import Problem, sequences
from fusestep import reference


@dataclass
class Scores:
    product: torch.Tensor  # scale * query @ key.T
    capped: torch.Tensor | None  # tanh(product / softcap)
    bias: torch.Tensor  # what ALiBi subtracts
    total: torch.Tensor  # before the mask
    excluded: torch.Tensor


def scores(q, k, options) -> Scores:
    """Of one sequence. Everything is written with indices: i queries, j keys."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scale = options.get("scale")
    product = q @ k.transpose(2, 3) * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    total, capped = product, None
    if options.get("softcap"):
        capped = torch.tanh(total / options["softcap"])
        total = options["softcap"] * capped

    batch, heads, queries, keys = product.shape
    i = torch.arange(queries)[:, None].expand(batch, 1, queries, 1)
    j = torch.arange(keys)[None, :].expand(batch, 1, 1, keys)
    lengths = torch.full((batch,), keys)
    if "key_lengths" in options:
        lengths = torch.as_tensor(options["key_lengths"]).long().clamp(max=keys)
    lengths = lengths[:, None, None, None]
    shift = lengths - queries if options.get("causal") == "bottom_right" else torch.zeros_like(lengths)
    excluded = j >= lengths
    ahead = j - i - shift
    if options.get("causal"):
        excluded = excluded | (ahead > 0)
    left, right = options.get("window") or (None, None)
    if left is not None:
        excluded = excluded | (-ahead > left)
    if right is not None:
        excluded = excluded | (ahead > right)
    bias = torch.zeros((), dtype=q.dtype)
    if "alibi_slopes" in options:
        slopes = torch.as_tensor(options["alibi_slopes"]).to(q.dtype)
        bias = (slopes[None] if slopes.ndim == 1 else slopes)[:, :, None, None] * ahead.abs()
    return Scores(product, capped, bias, total - bias, excluded.expand(batch, heads, queries, keys))


def keep_factor(shape, options, first_batch) -> torch.Tensor:
    """What dropout multiplies the weights by."""
    p = options.get("dropout_p")
    if not p:
        return torch.ones(shape, dtype=torch.float64)
    seeds = {"seed": options["seed"], "offset": options["offset"]}
    keep = reference.attention_keep(tuple(shape), p, first_batch=first_batch, **seeds)
    return torch.from_numpy(keep * reference.dropout_scale(p))


def excluding(mask) -> torch.Tensor:
    """Where an additive mask of scores in float32 excludes."""
    return mask <= torch.finfo(torch.float32).min


def probabilities(parts: Scores, mask) -> torch.Tensor:
    s, excluded = parts.total, parts.excluded
    if mask is not None and mask.dtype == torch.bool:
        excluded = excluded | ~mask
    elif mask is not None:
        s = s + mask
        excluded = excluded | excluding(mask)
    empty = excluded.all(dim=-1, keepdim=True)
    p = torch.softmax(torch.where(excluded & ~empty, -math.inf, torch.where(empty, 0.0, s)), dim=-1)
    return torch.where(excluded, 0.0, p)


@dataclass
class Results:
    out: np.ndarray
    grads: tuple[np.ndarray | None, ...]  # of query, key, value, additive mask


def attention(problem: Problem, dtype: str) -> Results:
    """Everything in `dtype`, forward and backward."""
    to = getattr(torch, dtype)
    leaves = [torch.as_tensor(a).to(to).requires_grad_() for a in problem.tensors()]
    mask = problem.options.get("mask")
    if mask is not None:
        mask = torch.as_tensor(np.asarray(mask))
        if mask.dtype != torch.bool:
            mask = mask.to(to).requires_grad_()
            leaves.append(mask)
    q, k, v = leaves[:3]
    out = torch.zeros((*q.shape[:3], v.shape[3]), dtype=to)
    for queries, keys, own in sequences(problem):
        own_mask = mask
        if "cu_seqlens_q" in problem.options and mask is not None:
            own_mask = mask.expand(1, q.shape[1], q.shape[2], k.shape[2])[:, :, queries, keys]
        own_q, own_k, own_v = q[:, :, queries], k[:, :, keys], v[:, :, keys]
        p = probabilities(scores(own_q, own_k, own.options), own_mask)
        weights = p * keep_factor(p.shape, own.options, own.first_batch).to(to)
        out[:, :, queries] = weights @ own_v.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    out.backward(torch.as_tensor(problem.grad_out).to(to))
    grads = [leaf.grad for leaf in leaves] + [None] * (4 - len(leaves))
    return Results(_wide(out), tuple(None if g is None else _wide(g) for g in grads))


def _wide(a: torch.Tensor) -> np.ndarray:
    return a.detach().to(torch.float64).numpy()
