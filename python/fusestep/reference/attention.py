"""Attention (Vaswani et al. 2017) with every mask, score modification and dropout that the kernels know.

    s = scale * query @ key.T                       scale: 1 / sqrt(D) unless given
    s = softcap * tanh(s / softcap)                 if softcap is given
    s = s - slope[head] * |i + shift - j|           if alibi_slopes are given
    s = s + mask                                    if the mask is additive
    p = softmax(s) over the keys that are left      none left: p = 0, lse = -inf
    out = dropout(p) @ value

i is a query, j a key, and shift leads from one to the other: 0, or the last query stands beside the last key with
causal="bottom_right". Fewer key heads than query heads: head h uses key head h // (heads / key heads).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen
from .masked_softmax import (
    Causal,
    Window,
    diagonal,
    is_additive,
    keep_factor,
    lowest_score,
    reduce_like,
    softmax,
    softmax_backward,
)


@dataclass(frozen=True)
class Options:
    """What attention takes beside its tensors, as keyword arguments.

    Args:
        mask: boolean (False excludes) or additive (-inf excludes); broadcasts to (batch, heads, queries, keys).
        causal: True or "top_left": query i sees the keys up to i; "bottom_right": the last query sees all keys.
        window: (left, right): so many keys to each side of the causal diagonal are seen; None: all of that side.
        key_lengths: (batch,): the keys from there on are excluded.
        alibi_slopes: (heads,) or (batch, heads).
        softcap: None or 0: none.
        cu_seqlens_q, cu_seqlens_k: (sequences + 1,): packed sequences. Sequence n has the queries cu_seqlens_q[n] to
            cu_seqlens_q[n + 1] of one batch, and is treated as batch n with positions of its own; key_lengths are then
            (sequences,), alibi_slopes (heads,) or (sequences, heads), and of the mask only the blocks count in which a
            sequence meets itself.
    """

    mask: ArrayLike | None = None
    causal: Causal = False
    window: Window | None = None
    key_lengths: ArrayLike | None = None
    alibi_slopes: ArrayLike | None = None
    softcap: float | None = None
    scale: float | None = None
    dropout_p: float = 0.0
    seed: int = 0
    offset: int = 0
    cu_seqlens_q: ArrayLike | None = None
    cu_seqlens_k: ArrayLike | None = None
    lowest: float = -math.inf  # set by `attention`
    first_batch: int = 0  # of a packed sequence: its place


def attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> tuple[Array, Array]:
    """(out, lse), lse being log(sum(exp(s))), without dropout.

    Args:
        query: (batch, heads, queries, D).
        key, value: (batch, key heads, keys, D) and (batch, key heads, keys, Dv).
        options: the fields of `Options`.
    """
    # Additive masks are judged by the arithmetic of the kernels, which follows the dtype of the query.
    own = Options(lowest=lowest_score(query), **options)
    return _forward(widen(query), widen(key), widen(value), own)


def attention_backward(
    grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any
) -> tuple[Array, Array, Array, Array | None]:
    """(grad_query, grad_key, grad_value, grad_mask); grad_mask is None unless the mask is additive."""
    own = Options(lowest=lowest_score(query), **options)
    return _backward(widen(grad_out), widen(query), widen(key), widen(value), own)


def _forward(q: Array, k: Array, v: Array, options: Options) -> tuple[Array, Array]:
    if options.cu_seqlens_q is not None:
        out = np.zeros((*q.shape[:3], v.shape[3]))
        lse = np.full(q.shape[:3], -np.inf)
        for queries, keys, own in _sequences(q.shape, k.shape, options):
            out[:, :, queries], lse[:, :, queries] = _forward(q[:, :, queries], k[:, :, keys], v[:, :, keys], own)
        return out, lse

    p, lse, _ = _probabilities(q, k, options)
    return p * _keep_factor(p, options) @ _repeat(v, q.shape[1]), lse


def _backward(
    grad_out: Array, q: Array, k: Array, v: Array, options: Options
) -> tuple[Array, Array, Array, Array | None]:
    if options.cu_seqlens_q is not None:
        return _packed_backward(grad_out, q, k, v, options)

    heads, key_heads = q.shape[1], k.shape[1]
    p, _, slope_of_cap = _probabilities(q, k, options)
    factor = _keep_factor(p, options)
    grad_value = np.swapaxes(p * factor, 2, 3) @ grad_out
    grad_p = grad_out @ np.swapaxes(_repeat(v, heads), 2, 3) * factor
    grad_s = softmax_backward(grad_p, p)
    grad_product = grad_s * slope_of_cap * _scale(q, options)
    grad_query = grad_product @ _repeat(k, heads)
    grad_key = np.swapaxes(grad_product, 2, 3) @ q
    return (
        grad_query,
        _sum_groups(grad_key, key_heads),
        _sum_groups(grad_value, key_heads),
        reduce_like(grad_s, options.mask),
    )


def _probabilities(q: Array, k: Array, options: Options) -> tuple[Array, Array, Array | float]:
    """(p, lse, d s / d (scale * query @ key.T))."""
    s = _scale(q, options) * (q @ np.swapaxes(_repeat(k, q.shape[1]), 2, 3))
    slope_of_cap: Array | float = 1.0
    if options.softcap:
        capped = np.tanh(s / options.softcap)
        s, slope_of_cap = options.softcap * capped, 1 - capped**2
    if options.alibi_slopes is not None:
        slopes = widen(options.alibi_slopes)
        slopes = slopes.reshape((1,) * (2 - slopes.ndim) + slopes.shape + (1, 1))
        queries, keys = s.shape[2:]
        limits = keys if options.key_lengths is None else np.asarray(options.key_lengths).reshape(-1, 1, 1, 1)
        beside = np.arange(queries).reshape(queries, 1) + diagonal(options.causal, queries, limits)
        s = s - slopes * np.abs(beside - np.arange(keys))
    p, lse = softmax(s, options.mask, options.causal, options.window, options.key_lengths, options.lowest)
    return p, lse, slope_of_cap


def _keep_factor(p: Array, options: Options) -> Array | float:
    return keep_factor(p.shape, options.dropout_p, options.seed, options.offset, options.first_batch)


def _scale(q: Array, options: Options) -> float:
    return 1 / math.sqrt(q.shape[3]) if options.scale is None else options.scale


def _repeat(x: Array, heads: int) -> Array:
    """Key heads for every query head."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def _sum_groups(grad: Array, key_heads: int) -> Array:
    """The gradient of key heads that `_repeat` repeated."""
    batch, heads, keys, dim = grad.shape
    return np.asarray(grad.reshape(batch, key_heads, heads // key_heads, keys, dim).sum(axis=2))


# --- packed sequences ---------------------------------------------------------------------------------------
def _sequences(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], options: Options
) -> Iterator[tuple[slice, slice, Options]]:
    """(its queries, its keys, the options of its own) of each packed sequence."""
    q_ends, k_ends = np.asarray(options.cu_seqlens_q), np.asarray(options.cu_seqlens_k)
    mask = None
    if options.mask is not None:
        mask = np.broadcast_to(np.asarray(options.mask), (1, q_shape[1], q_shape[2], k_shape[2]))
    for n in range(len(q_ends) - 1):
        queries, keys = slice(q_ends[n], q_ends[n + 1]), slice(k_ends[n], k_ends[n + 1])
        lengths, slopes = options.key_lengths, options.alibi_slopes
        yield (
            queries,
            keys,
            replace(
                options,
                mask=None if mask is None else mask[:, :, queries, keys],
                # It may name more keys than the sequence has.
                key_lengths=None if lengths is None else [min(np.asarray(lengths)[n], keys.stop - keys.start)],
                alibi_slopes=slopes if slopes is None or np.ndim(slopes) == 1 else np.asarray(slopes)[n],
                cu_seqlens_q=None,
                cu_seqlens_k=None,
                first_batch=n,
            ),
        )


def _packed_backward(
    grad_out: Array, q: Array, k: Array, v: Array, options: Options
) -> tuple[Array, Array, Array, Array | None]:
    grad_query, grad_key, grad_value = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    grad_mask = np.zeros((1, q.shape[1], q.shape[2], k.shape[2]))
    for queries, keys, own in _sequences(q.shape, k.shape, options):
        grads = _backward(grad_out[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys], own)
        grad_query[:, :, queries], grad_key[:, :, keys], grad_value[:, :, keys], block = grads
        if block is not None:
            grad_mask[:, :, queries, keys] = block
    additive = options.mask is not None and is_additive(options.mask)
    return grad_query, grad_key, grad_value, reduce_like(grad_mask, options.mask) if additive else None
