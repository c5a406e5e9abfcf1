"""Attention, masked softmax and dropout as functions of PyTorch tensors, with gradients.

They are fused kernels and keep little for the backward pass: attention its output and one number a query, dropout
nothing. The random mask is a pure function of a seed, made again when it is needed, and the same on every device and
with any number of threads. The seed is drawn from torch's default CPU generator unless it is given, so
``torch.manual_seed`` repeats a run and activation checkpointing drops the same elements twice. While a CUDA graph
captures it is drawn from the device's generator, anew at each replay; a seed given as a tensor on the device is read
there, and the host does not wait.

They work under ``torch.compile`` and autocast, and refuse double backward (but for dropout, where it works).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from fusestep._refusal import check_choice, check_number, check_probability, refuse

from . import _nested, _ops

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._attention_options import AttentionOptions, Causal, Window

__all__ = [
    "attention",
    "cross_entropy",
    "dropout",
    "dropout_add",
    "linear_cross_entropy",
    "masked_softmax",
    "scaled_dot_product_attention",
]

_is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # looked up once: it is asked in every call
_run_attention = _ops.attention.__call__


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, *, return_lse: Literal[False] = ..., **options: Unpack[AttentionOptions]
) -> Tensor: ...
@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, *, return_lse: Literal[True], **options: Unpack[AttentionOptions]
) -> tuple[Tensor, Tensor]: ...
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | Causal = False,
    window: Window | None = None,
    key_lengths: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    offset: int = 0,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with any mask and dropout together: ``dropout(softmax(scores)) @ value``.

    The scores of query i and key j are ``scale * q_i . k_j``, soft-capped, biased and masked as the arguments say. No
    matrix of scores is ever held. A query that may look at no key gives zeros, and zero gradients.

    Args:
        query: (B, H, Sq, D), any strides: views of (B, S, H, D) cost nothing. float32, float64, bfloat16 or float16;
            arithmetic is in float32 (float64 for float64). D is 1 to 256.
        key: (B, Hkv, Sk, D). H is a multiple of Hkv; each key head serves H / Hkv query heads in a row.
        value: (B, Hkv, Sk, Dv).
        mask: broadcastable to (B, H, Sq, Sk), never expanded. Boolean: True where the query attends. Floating (the
            dtype of query, or float32): added to the scores, with a gradient if it requires one.
        causal: True or "top_left": query i sees keys up to i. "bottom_right": up to i + Sk - Sq, so that the last query
            sees all keys. False: no such mask.
        window: (left, right): query i sees keys from i - left to i + right, on the diagonal that `causal` names.
            None or -1: as far as there are keys.
        key_lengths: (B,), int32 or int64: batch b has the first key_lengths[b] keys only. In CPU memory, or like
            cu_seqlens on the CUDA device of query: the host does not wait to check them then.
        alibi_slopes: (H,) or (B, H): slope * distance to the diagonal is taken off the scores.
        softcap: scores become softcap * tanh(scores / softcap) before biases and masks.
        scale: default 1 / sqrt(D).
        dropout_p: probability with which each weight is dropped, in [0, 1]; the others are scaled by 1 / (1 - p).
        seed: of the dropout mask: an integer in [0, 2^64), or a 0-dim int64 tensor. None: drawn from torch's default
            CPU generator.
        offset: in [0, 2^32): another mask of the same seed.
        cu_seqlens_q, cu_seqlens_k: (N + 1,) int32 or int64: N sequences of different lengths packed one after another
            in a batch of one; sequence n is tokens cu_seqlens[n] to cu_seqlens[n + 1]. Each attends within itself, with
            positions, key_lengths and dropout as if it stood alone as batch n.
        return_lse: also return the log of the sum of the exponentials of each query's scores, without gradient.

    Returns:
        (B, H, Sq, Dv), laid out as (B, Sq, H, Dv) in memory: ``out.transpose(1, 2).reshape(B, Sq, H * Dv)`` is a view.
        With return_lse also (B, H, Sq), float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument that cannot be taken, named; nothing has been computed then.
        RuntimeError: double backward.
    """
    if alibi_slopes is not None and alibi_slopes.requires_grad:
        refuse("attention", "alibi_slopes", "a tensor that needs no gradient", "requires_grad=True",
               "Detach it, or give an additive mask, which has a gradient.")  # fmt: skip
    dropping = _dropping("attention", query, dropout_p, seed, offset)
    options = (
        mask, causal, window, key_lengths, scale, *dropping, alibi_slopes, softcap, cu_seqlens_q, cu_seqlens_k
    )  # fmt: skip
    run = _nested_attention if _is_nested(query) else _attention
    out, lse = run("attention", query, key, value, options, return_lse)
    return out if lse is None or not return_lse else (out, lse)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with its signature and its meaning, to be swapped in.

    Masks and dropout together stay fast and need no memory for scores. ``attention`` has more to offer.

    Args:
        query: (L, E), (N, L, E) or (N, ..., Hq, L, E).
        key: (..., S, E).
        value: (..., S, Ev). Leading dimensions broadcast, as in torch.
        attn_mask: boolean (True: attend) or floating (added), broadcastable to (N, ..., Hq, L, S).
        dropout_p: in [0, 1], applied whenever it is > 0.
        is_causal: query i sees keys up to i; not together with attn_mask.
        scale: default 1 / sqrt(E).
        enable_gqa: key and value may have fewer heads, which are shared by Hq / H query heads in a row.

    Returns:
        (..., L, Ev)

    Raises:
        RuntimeError: attn_mask and is_causal together, as in torch; double backward.
        TypeError, ValueError: other arguments that cannot be taken.
    """
    name = "scaled_dot_product_attention"
    if attn_mask is not None and is_causal:
        refuse(name, "attn_mask", "None with is_causal=True", "a mask",
               "fusestep.nn.functional.attention takes both.", RuntimeError)  # fmt: skip
    dropping = (0.0, None, 0) if dropout_p == 0.0 else _dropping(name, query, dropout_p, None, 0)
    options = (attn_mask, is_causal, None, None, scale, *dropping, None, None, None, None)
    if query.is_nested is True:  # as _is_nested, without a call
        return _nested_attention(name, query, key, value, options, False)[0]
    if _are_direct(query.shape, key.shape, value.shape, enable_gqa):
        return _attention(name, query, key, value, options, False)[0]
    return _any_dims(name, query, key, value, options, enable_gqa)


def masked_softmax(
    scores: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool | Causal = False,
    window: Window | None = None,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """``dropout(softmax(scale * scores))`` over the last dimension, masked, for code that needs the weights.

    Args:
        scores: (Sq, Sk), (H, Sq, Sk) or (B, H, Sq, Sk); dtypes as for ``attention``.
        scale: default 1.
        mask, causal, window, key_lengths, dropout_p, seed, offset: as for ``attention``: the same seed drops the same
            weights.

    Returns:
        The weights, of the shape of scores: zeros for a row with nothing to attend to.

    Raises:
        As ``attention``.
    """
    options = (mask, causal, window, key_lengths, scale, *_dropping("masked_softmax", scores, dropout_p, seed, offset))
    return _ops.masked_softmax("masked_softmax", (scores,), options, False)[0]


def dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Zeroes each element with probability p and scales the others by 1 / (1 - p).

    Args:
        x: float32, float64, bfloat16 or float16, any strides. Elements are counted in the order of its shape, so that
            a transposed tensor with the same values loses the same ones.
        p: in [0, 1]. It is rounded to a multiple of 2^-16, and the scale is that of the rounded one. 1 gives zeros.
        training: False gives x back.
        inplace: change x itself.
        seed, offset: as for ``attention``.

    Raises:
        TypeError, ValueError: an argument that cannot be taken; x is as it was then.
        RuntimeError: inplace on a leaf that requires a gradient.
    """
    check_probability("dropout", "p", p)
    if not training or p == 0.0:
        return x
    if _is_nested(x):
        if inplace:
            refuse("dropout", "inplace", "False for a nested tensor", "True")
        return _nested.elementwise("dropout", lambda x: dropout(x, p, seed=seed, offset=offset), x=x)
    if inplace:
        if x.requires_grad and x.is_leaf and torch.is_grad_enabled():
            refuse("dropout", "x", "a tensor that may be changed in place", "a leaf that requires a gradient",
                   error=RuntimeError)  # fmt: skip
        return _ops.dropout_("dropout", x, p, _seed("dropout", x, seed), offset)
    return _ops.dropout("dropout", x, p, _seed("dropout", x, seed), offset)


def dropout_add(
    x: Tensor,
    residual: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """``residual + dropout(x)`` in one pass.

    Args:
        x, residual: of one shape. Their dtypes may differ: the sum has torch's promotion of the two (float32 for a
            bfloat16 x and a float32 residual, as under autocast), and each gradient the dtype of its tensor.
        p, training, seed, offset: as for ``dropout``.

    Raises:
        As ``dropout``.
    """
    check_probability("dropout_add", "p", p)
    if not training or p == 0.0:
        return residual + x
    if _is_nested(x) or _is_nested(residual):
        return _nested.elementwise(
            "dropout_add",
            lambda x, residual: dropout_add(x, residual, p, seed=seed, offset=offset),
            x=x,
            residual=residual,
        )
    return _ops.dropout_add("dropout_add", x, residual, p, _seed("dropout_add", x, seed), offset)


def _dropping(operation: str, x: Tensor, p: float, seed: int | Tensor | None, offset: int) -> tuple[Any, ...]:
    """The options dropout_p, seed and offset. A seed is drawn only where there is something to drop."""
    return (0.0, None, 0) if p == 0.0 else (p, _seed(operation, x, seed), offset)


def _seed(operation: str, x: Tensor, seed: int | Tensor | None) -> int | Tensor:
    if seed is None:
        return _ops.draw_seed(x.device)
    _ops.check_seed(operation, seed)
    return seed


def _attention(
    operation: str, query: Tensor, key: Tensor, value: Tensor, options: tuple[Any, ...], wants_lse: bool
) -> tuple[Tensor, Tensor | None]:
    if _is_any_autocast_enabled():
        query, key, value, options = _autocast(query, key, value, options)
    return _run_attention(operation, (query, key, value), options, wants_lse)


def _nested_attention(
    operation: str, query: Tensor, key: Tensor, value: Tensor, options: tuple[Any, ...], wants_lse: bool
) -> tuple[Tensor, Tensor | None]:
    packed = _nested.pack(operation, query, key, value, options)
    out, lse = _attention(operation, *packed, wants_lse)
    return _nested.unpack(out, query), None if lse is None else _nested.unpack(lse, query)


def _autocast(
    query: Tensor, key: Tensor, value: Tensor, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]:
    """As torch's own attention under autocast: float64 is left alone. Masks may stay in float32."""
    device = query.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return query, key, value, options
    dtype = torch.get_autocast_dtype(device)
    query, key, value = (t if t.dtype == torch.float64 else t.to(dtype) for t in (query, key, value))
    mask = options[0]
    if mask is not None and mask.dtype in (torch.float16, torch.bfloat16):
        options = (mask.to(dtype), *options[1:])
    return query, key, value, options


def _are_direct(query: torch.Size, key: torch.Size, value: torch.Size, enable_gqa: bool) -> bool:
    """Whether `attention` takes tensors of these shapes as they are: four dimensions, and nothing to broadcast."""
    # One by one: torch.jit.trace cannot compare whole shapes.
    return (
        len(query) == len(key) == len(value) == 4
        and query[0] == key[0] == value[0]
        and (enable_gqa or query[1] == key[1] == value[1])
    )


def _is_nested(x: Tensor) -> bool:
    return x.is_nested is True  # a torch.fx.Proxy answers with another Proxy, of which nothing can be asked


def _any_dims(
    operation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: tuple[Any, ...],
    enable_gqa: bool,
) -> Tensor:
    """What torch takes besides four equal leading dimensions, brought to (B, H, S, D) without copies where possible."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if _is_nested(tensor):
            refuse(operation, name, "an ordinary tensor as query is", "a nested one")
        if tensor.dim() < 2:
            refuse(operation, name, "at least 2 dimensions", f"shape {tuple(tensor.shape)}")
    inputs = [query, key, value]
    shared = -3 if enable_gqa else -2  # the dimensions before it broadcast
    try:
        leading = torch.broadcast_shapes(*(t.shape[:shared] for t in inputs))  # type: ignore[no-untyped-call]
    except RuntimeError:
        shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
        refuse(operation, "query, key, value", "leading dimensions that broadcast", f"shapes {shapes}")
    inputs = [t.expand(*leading, *t.shape[shared:]) for t in inputs]
    target = inputs[0].shape
    inputs = [_four_dims(t) for t in inputs]
    mask = options[0]
    if mask is not None and len(target) > 4 and mask.dim() > 3:
        options = (_four_dims(mask.expand(*target[:-3], *mask.shape[-3:])), *options[1:])
    out = _attention(operation, inputs[0], inputs[1], inputs[2], options, False)[0]
    return out.reshape(*target[:-1], value.shape[-1])


def _four_dims(x: Tensor) -> Tensor:
    return x[None, None] if x.dim() == 2 else x.reshape(-1, *x.shape[-3:])


def cross_entropy(
    input: Tensor,  # torch's name
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    overwrite_logits: bool = False,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`, with the gradient made in the forward pass, beside the loss.

    The kernel takes class indices of (N, C) logits without class weights, in CPU memory and, where fusestep was built
    with CUDA, on a device. All else (probabilities as targets, weights, more dimensions, other devices, torch.compile,
    transforms) is done by torch's operations in float32.

    Args:
        input: (C,), (N, C) or (N, C, d1, ...): float32, float64, bfloat16 or float16. Arithmetic is in float32 (float64
            for float64).
        target: int64 class indices, or probabilities of the shape of input. A class that does not exist is refused in
            CPU memory; on a device, where the host does not wait to look, its loss and its row of the gradient are NaN.
        weight, ignore_index, reduction, label_smoothing: as torch's.
        z_loss: this times the squared log-sum-exp is added to the loss of each row that is not ignored (PaLM, 2022).
            With class weights, its mean is over rows all the same.
        overwrite_logits: allows the kernel to write the gradient over the logits instead of into a second array of
            their size: nothing else may read them afterwards. They may be no leaf, nor a view of one.

    Returns:
        The loss: () or, without a reduction, the shape of the class indices; float32 (float64 for float64).

    Raises:
        TypeError, ValueError, IndexError: an argument that cannot be taken; nothing has been written then.
        RuntimeError: a leaf to be overwritten; double backward through the kernel; on a CUDA device a second backward
            pass (``retain_graph=True``), as the first has scaled the gradient in place.
    """
    rule = (ignore_index, label_smoothing, z_loss, reduction)
    plain = input.dim() == 2 and weight is None and target.dtype == torch.int64
    if plain and _ops.has_cross_entropy_kernel(input.device) and _ops.runs_eagerly((input, target)):
        kept = input if input._base is None else input._base  # the tensor whose memory it is
        if overwrite_logits and torch.is_grad_enabled() and kept.is_leaf and kept.requires_grad:
            refuse("cross_entropy", "input", "a tensor that may be changed in place", "a leaf or a view of one",
                   "Pass overwrite_logits=False.", RuntimeError)  # fmt: skip
        return _ops.cross_entropy("cross_entropy", input, target, rule, overwrite_logits)
    check_number("cross_entropy", "z_loss", z_loss, 0.0)
    return _ops.cross_entropy_by_torch(input, target, rule, weight)


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """``cross_entropy(linear(input, weight, bias), target)`` without ever holding all logits in memory.

    Some rows of logits at a time (at most 2^24 logits, but 64 rows) are made, give their loss and their gradients of
    input, weight and bias, and are dropped. The gradients are made in the forward pass; their sums over rows are in
    float32 (float64 for float64). Under torch.compile, torch.func transforms and for tensor subclasses, which have to
    see the operations, all logits are made.

    Args:
        input: hidden states (..., E), of any floating dtype and device.
        weight: of the output layer, (V, E).
        target: int64 class indices (...).
        bias: (V,).
        ignore_index, label_smoothing, z_loss: as `cross_entropy`.
        reduction: "mean" over the targets that are not ignored, or "sum".

    Returns:
        The loss, (), float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument that cannot be taken, a class that does not exist (on a CPU).
        RuntimeError: shapes that do not fit (torch's own); double backward.
    """
    name = "linear_cross_entropy"
    check_choice(name, "reduction", reduction, ("mean", "sum"))
    check_number(name, "z_loss", z_loss, 0.0)
    check_probability(name, "label_smoothing", label_smoothing)
    if target.dtype != torch.int64:
        refuse(name, "target", "int64 class indices", str(target.dtype), error=TypeError)
    if target.shape != input.shape[:-1]:
        refuse(name, "target", f"the shape {tuple(input.shape[:-1])} of the rows of input", f"{tuple(target.shape)}")
    rule = (ignore_index, label_smoothing, z_loss, reduction)
    rows, labels = input.reshape(-1, input.shape[-1]), target.reshape(-1)
    if not _ops.runs_eagerly(tensor for tensor in (input, weight, target, bias) if tensor is not None):
        return _ops.cross_entropy_by_torch(torch.nn.functional.linear(rows, weight, bias), labels, rule)
    if labels.device.type == "cpu":
        wrong = (labels != ignore_index) & ((labels < 0) | (labels >= weight.shape[0]))
        if wrong.any():
            expected = f"classes from 0 to {weight.shape[0] - 1}, or ignore_index = {ignore_index}"
            refuse(name, "target", expected, str(int(labels[wrong][0])))
    return _ops.linear_cross_entropy(name, rows, weight, bias, labels, rule)
