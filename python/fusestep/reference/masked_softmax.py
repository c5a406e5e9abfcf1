"""Softmax over the positions that masks leave: rows with nothing left are zeros, never NaN."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen
from .dropout import attention_keep, dropout_scale

Causal = bool | Literal["top_left", "bottom_right"]
Window = tuple[int | None, int | None]


def masked_softmax(
    scores: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    causal: Causal = False,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Array, Array]:
    """(dropout(softmax(scale * scores + mask)), log(sum(exp(scale * scores + mask)))) along the last axis.

    Args:
        scores: (batch, heads, queries, keys); leading axes that are missing count as 1.
        mask: boolean (False excludes) or additive (-inf excludes), of a shape that broadcasts to that of scores.
        causal: True or "top_left": query i sees the keys up to i; "bottom_right": the last query sees all keys.
        window: (left, right): so many keys to each side of the causal diagonal are seen; None: all of that side.
        key_lengths: (batch,): the keys from there on are excluded.
    """
    s = widen(scores)
    p, lse = softmax(scale * _four_dims(s), mask, causal, window, key_lengths, lowest_score(scores))
    weights = p * keep_factor(p.shape, dropout_p, seed, offset)
    return weights.reshape(s.shape), lse.reshape(s.shape[:-1])


def masked_softmax_backward(
    grad_out: ArrayLike,
    scores: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    causal: Causal = False,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Array, Array | None]:
    """(grad_scores, grad_mask) of `masked_softmax`; grad_mask is None unless the mask is additive."""
    s = widen(scores)
    p, _ = softmax(scale * _four_dims(s), mask, causal, window, key_lengths, lowest_score(scores))
    grad_p = _four_dims(widen(grad_out)) * keep_factor(p.shape, dropout_p, seed, offset)
    grad = softmax_backward(grad_p, p)
    return (scale * grad).reshape(s.shape), reduce_like(grad, mask)


def softmax(
    scores: Array,
    mask: ArrayLike | None,
    causal: Causal,
    window: Window | None,
    key_lengths: ArrayLike | None,
    lowest: float,
) -> tuple[Array, Array]:
    """(softmax, log-sum-exp) of four-dimensional scores with the mask added; a mask below `lowest` excludes."""
    allowed = visible(scores.shape, causal, window, key_lengths)
    if mask is not None and is_additive(mask):
        scores = scores + widen(mask)
        allowed = allowed & (widen(mask) >= lowest)
    elif mask is not None:
        allowed = allowed & np.asarray(mask)
    scores = np.where(allowed, scores, -np.inf)

    highest = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    highest = np.where(highest == -np.inf, 0.0, highest)  # nothing left: exp(-inf - 0) = 0
    exp = np.exp(scores - highest)
    total = np.sum(exp, axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + highest
    return exp / np.where(total == 0, 1.0, total), lse[..., 0]


def lowest_score(like: ArrayLike) -> float:
    """The lowest finite score: what lies below is -inf.

    The kernels work with score * log2(e), in float64 for float64 and in float32 for the rest. Most libraries write
    finfo.min where they mean -inf; so it has the same effect.
    """
    arithmetic = np.float64 if np.asarray(like).dtype.itemsize >= 8 else np.float32
    return float(np.finfo(arithmetic).min) / math.log2(math.e)


def softmax_backward(grad_p: Array, p: Array) -> Array:
    """The gradient of the scores, given that of the probabilities."""
    return np.asarray(p * (grad_p - np.sum(grad_p * p, axis=-1, keepdims=True)))


def visible(shape: tuple[int, ...], causal: Causal, window: Window | None, key_lengths: ArrayLike | None) -> Array:
    """Which (batch, 1, query, key) the masks by position leave."""
    batch, _, queries, keys = shape
    key = np.arange(keys)
    limits = np.full(batch, keys) if key_lengths is None else np.asarray(key_lengths)
    limits = limits.reshape(batch, 1, 1, 1)
    # Query i stands beside this key. Bottom right: the last query beside the last key.
    beside = np.arange(queries).reshape(queries, 1) + diagonal(causal, queries, limits)
    left, right = (None, None) if window is None else window
    allowed = np.broadcast_to(key < limits, (batch, 1, queries, keys))
    if causal:
        allowed = allowed & (key <= beside)
    if left is not None:
        allowed = allowed & (key >= beside - left)
    if right is not None:
        allowed = allowed & (key <= beside + right)
    return allowed


def diagonal(causal: Causal, queries: int, keys: Any) -> Any:
    """How far query 0 stands from key 0."""
    return keys - queries if causal == "bottom_right" else 0


def keep_factor(shape: tuple[int, ...], p: float, seed: int, offset: int, first_batch: int = 0) -> Array | float:
    """What dropout multiplies the probabilities by: 0 or 1 / (1 - p)."""
    if p == 0:
        return 1.0
    batch, heads, queries, keys = shape
    keep = attention_keep((batch, heads, queries, keys), p, seed=seed, offset=offset, first_batch=first_batch)
    return keep * dropout_scale(p)


def is_additive(mask: ArrayLike) -> bool:
    return np.asarray(mask).dtype != np.bool_


def reduce_like(grad: Array, mask: ArrayLike | None) -> Array | None:
    """The gradient of an additive mask, summed over the axes along which it was broadcast; else None."""
    if mask is None or not is_additive(mask):
        return None
    shape = np.shape(mask)
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1 and grad.shape[axis] != 1)
    return np.asarray(grad.sum(axis=stretched, keepdims=True).reshape(shape))


def _four_dims(x: Array) -> Array:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)
