"""The masked softmax on its own, forward and backward."""

from __future__ import annotations

from typing import Any

from fusestep import _core

from ._arrays import bump_versions, check_grad_mask, empty, shape_of, softmax_options


def masked_softmax(
    scores: Any,
    *,
    mask: Any = None,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: Any = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | Any | None = None,
    offset: int = 0,
    out: Any = None,
    lse: Any = None,
) -> tuple[Any, Any]:
    """dropout(softmax(scale * scores + mask)) over the last dimension: the weights of `attention`.

    The arguments mean what they mean there: with scores = query @ key.T the two drop the same weights. A row in which
    nothing is left gives zeros, never NaN. The rule in full is `fusestep.reference.masked_softmax`.

    Args:
        scores: (batch, heads, queries, keys), (heads, queries, keys) or (queries, keys), of float32, float64, bfloat16
            or float16, in any layout.
        mask: boolean (True: attend) or additive (float32 or the dtype of scores), of any shape that broadcasts to that
            of scores.
        causal, window, key_lengths, dropout_p, seed, offset: as of `attention`.
        scale: the scores are multiplied by this first.
        out, lse: where to write; default: new arrays. out may be scores itself, but then the backward pass lacks them.

    Returns:
        (out, lse): the weights in the shape and dtype of scores, and the log of the sum of exponentials of each row,
        in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument that cannot be taken. Nothing has been written then.
    """
    options = softmax_options("masked_softmax", mask, causal, window, key_lengths, scale, dropout_p, seed, offset)
    shape = shape_of(scores)
    written = empty("masked_softmax", "out", shape, scores) if out is None else out
    written_lse = empty("masked_softmax", "lse", shape[:-1], scores, for_sums=True) if lse is None else lse
    _core.masked_softmax_forward("masked_softmax", scores, written, written_lse, options)
    bump_versions(given for given in (out, lse) if given is not None)
    return written, written_lse


def masked_softmax_backward(
    grad_out: Any,
    scores: Any,
    lse: Any,
    *,
    mask: Any = None,
    causal: bool | str = False,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: Any = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | Any | None = None,
    offset: int = 0,
    grad_mask: bool = False,
) -> tuple[Any, ...]:
    """The gradients of `masked_softmax`. The weights and the dropout mask are worked out anew, not stored.

    Args:
        grad_out: the gradient of out, in its shape and dtype.
        scores, lse: what went into `masked_softmax`, and what came out.
        grad_mask: whether the gradient of an additive mask is wanted too.
        The others: as they were given to `masked_softmax`.

    Returns:
        (grad_scores,), and grad_mask after it where it is wanted, in the mask's shape and dtype.

    Raises:
        TypeError, ValueError: an argument that cannot be taken.
    """
    options = softmax_options(
        "masked_softmax_backward", mask, causal, window, key_lengths, scale, dropout_p, seed, offset
    )
    check_grad_mask("masked_softmax_backward", grad_mask, mask)
    grad_scores = empty("masked_softmax_backward", "scores", shape_of(scores), scores)
    mask_grad = empty("masked_softmax_backward", "mask", shape_of(mask), mask) if grad_mask else None
    _core.masked_softmax_backward("masked_softmax_backward", grad_out, scores, lse, grad_scores, mask_grad, options)
    return (grad_scores, mask_grad) if grad_mask else (grad_scores,)
