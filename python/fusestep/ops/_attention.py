"""Masked softmax attention with dropout, forward and backward."""

from __future__ import annotations

from typing import Any

from fusestep import _core

from ._arrays import bump_versions, check_grad_mask, empty, shape_of, softmax_options


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: Any = None,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Any | None = None,
    offset: int = 0,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    out: Any = None,
    lse: Any = None,
) -> tuple[Any, Any]:
    """dropout(softmax(scale * query @ key.T + mask)) @ value, without ever holding all weights.

    All masks may be combined; each excludes keys. A query for which no key is left gives zeros, never NaN. The rule in
    full, with what comes in which order, is `fusestep.reference.attention`.

    Args:
        query: (batch, heads, queries, D), of float32, float64, bfloat16 or float16; 16-bit floats are computed with in
            float32. D is 1 to 256. Any strides: a (batch, queries, heads, D) array comes in as its transposed view.
        key, value: (batch, key heads, keys, D) and (batch, key heads, keys, Dv) of the same dtype. The heads are a
            multiple of the key heads: head h uses key head h // (heads // key heads).
        mask: boolean (True: attend) or additive (float32 or the dtype of query; -inf excludes, and so does finfo.min
            of float32), of any shape that broadcasts to (batch, heads, queries, keys); it is not expanded.
        causal: True or "top_left": query i sees the keys up to i. "bottom_right": the last query sees all keys.
        window: (left, right): a query sees so many keys back and ahead of the causal diagonal; None or -1: no limit.
        key_lengths: (batch,) of int32 or int64: how many keys exist. In CPU memory, or on the CUDA device of query: the
            host does not wait to check them then, and they are limited to the keys that there are.
        alibi_slopes: (heads,) or (batch, heads), float32 or float64: the score falls by slope * distance to the causal
            diagonal.
        softcap: the score becomes softcap * tanh(score / softcap), before the mask is added.
        scale: default 1 / sqrt(D).
        dropout_p: in [0, 1]: the probability with which a weight is dropped, rounded to a multiple of 2**-16.
        seed: 0 to 2**64 - 1; needed where dropout_p > 0. The weight of a query and a key is kept or dropped by seed,
            offset, batch, head and the two positions, on every device alike. Or a 0-dim int64 array on the device of
            query, whose 64 bits are read when the kernel runs.
        offset: 0 to 2**32 - 1: tells apart calls that share a seed.
        cu_seqlens_q, cu_seqlens_k: (sequences + 1,) of int32 or int64, from 0 upwards: packed sequences. The batch is
            1; sequence n has rows cu_seqlens[n] to cu_seqlens[n + 1] and counts as batch n, with positions of its own.
            key_lengths and alibi_slopes go by sequences then; the mask is (1, heads, all queries, all keys). Rows of
            no sequence give zeros. In CPU memory or on the device, all lengths alike.
        out, lse: where to write; default: new arrays.

    Returns:
        (out, lse): (batch, heads, queries, Dv) in the dtype of query, and the log of the sum of exponentials of each
        query's scores, (batch, heads, queries), in float32 (float64 for float64); -inf where no key is left. The bits
        are the same for any number of threads.

    Raises:
        TypeError, ValueError: an argument that cannot be taken. Nothing has been written then.
    """
    common = softmax_options("attention", mask, causal, window, key_lengths, scale, dropout_p, seed, offset)
    options = (*common, alibi_slopes, softcap, cu_seqlens_q, cu_seqlens_k)
    rows = shape_of(query)[:-1]
    written = empty("attention", "out", (*rows, *shape_of(value)[-1:]), query) if out is None else out
    written_lse = empty("attention", "lse", rows, query, for_sums=True) if lse is None else lse
    _core.attention_forward("attention", query, key, value, written, written_lse, options)
    bump_versions(given for given in (out, lse) if given is not None)
    return written, written_lse


def attention_backward(
    grad_out: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    *,
    mask: Any = None,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: Any = None,
    alibi_slopes: Any = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Any | None = None,
    offset: int = 0,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    grad_mask: bool = False,
) -> tuple[Any, ...]:
    """The gradients of `attention`. The weights and the dropout mask are worked out anew, not stored.

    Args:
        grad_out: the gradient of out, in its shape and dtype.
        query, key, value, out, lse: what went into `attention`, and what came out.
        grad_mask: whether the gradient of an additive mask is wanted too.
        The others: as they were given to `attention`.

    Returns:
        (grad_query, grad_key, grad_value), and grad_mask after them where it is wanted: summed over the dimensions
        along which the mask was broadcast, in the mask's shape and dtype.

    Raises:
        TypeError, ValueError: an argument that cannot be taken.
    """
    common = softmax_options("attention_backward", mask, causal, window, key_lengths, scale, dropout_p, seed, offset)
    options = (*common, alibi_slopes, softcap, cu_seqlens_q, cu_seqlens_k)
    check_grad_mask("attention_backward", grad_mask, mask)
    operation = "attention_backward"
    grad_query = empty(operation, "query", shape_of(query), query)
    grad_key = empty(operation, "key", shape_of(key), key)
    grad_value = empty(operation, "value", shape_of(value), value)
    mask_grad = empty(operation, "mask", shape_of(mask), mask) if grad_mask else None
    _core.attention_backward(
        operation, grad_out, query, key, value, out, lse, grad_query, grad_key, grad_value, mask_grad, options
    )
    grads = (grad_query, grad_key, grad_value)
    return (*grads, mask_grad) if grad_mask else grads
