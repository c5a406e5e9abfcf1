"""Nested tensors of torch's jagged layout: sequences packed end to end, which is how the kernels take them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusestep._refusal import refuse

_EXPECTED = "a jagged nested tensor (batch, heads, ragged, features)"
_REMEDY = "torch.nested.nested_tensor([(length, heads, features), ...], layout=torch.jagged).transpose(1, 2) is one."


def pack(
    operation: str, query: Tensor, key: Tensor, value: Tensor, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]:
    """What attention of packed sequences takes in their place: one batch, and cu_seqlens among the options.

    The sequences' lengths stay on the device of the tensors: the host does not wait for them.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_heads(operation, name, x)
    *others, cu_seqlens_q, cu_seqlens_k = options
    for name, option in (
        ("mask", options[0]), ("key_lengths", options[3]),
        ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k),
    ):  # fmt: skip
        if option is not None:
            refuse(operation, name, "None beside nested tensors", "a tensor", "Each sequence has its own lengths.")
    if query.shape[0] != key.shape[0]:
        refuse(operation, "key", f"{query.shape[0]} sequences as query has", str(key.shape[0]))
    if not _same_lengths(key, value):
        refuse(operation, "value", "sequences as long as those of key", "other lengths")
    packed = [x.values()[None] for x in (query, key, value)]
    return packed[0], packed[1], packed[2], (*others, _offsets(query), _offsets(key))


def unpack(packed: Tensor, like: Tensor) -> Tensor:
    """(1, heads, tokens, ...) as `like` is nested: (batch, heads, ragged, ...)."""
    return _nest(packed[0], like)


def elementwise(operation: str, function: Callable[..., Tensor], **tensors: Tensor) -> Tensor:
    """`function` of the packed elements, nested again. The tensors (argument=tensor) are nested alike."""
    first = next(iter(tensors.values()))
    for name, x in tensors.items():
        if not x.is_nested or x.layout != torch.jagged:
            got = f"one of layout {x.layout}" if x.is_nested else "an ordinary tensor"
            refuse(operation, name, "nested tensors of layout torch.jagged", got)
        _check_packed(operation, name, x)
        if _ragged_dim(x) != _ragged_dim(first) or not _same_lengths(x, first):
            refuse(operation, name, "sequences as those of x", "others")
    return _nest(function(*(x.values() for x in tensors.values())), first)


def _check_heads(operation: str, name: str, x: Tensor) -> None:
    if not x.is_nested:
        refuse(operation, name, _EXPECTED + " as the others are", "an ordinary one", _REMEDY)
    if x.layout != torch.jagged:
        refuse(operation, name, _EXPECTED, f"a nested tensor of layout {x.layout}", _REMEDY)
    if x.dim() != 4 or _ragged_dim(x) != 2:
        shape = ", ".join("ragged" if d == _ragged_dim(x) else str(x.shape[d]) for d in range(x.dim()))
        refuse(operation, name, _EXPECTED, f"({shape})", _REMEDY)
    _check_packed(operation, name, x)


def _check_packed(operation: str, name: str, x: Tensor) -> None:
    if x.lengths() is not None:  # type: ignore[attr-defined]
        refuse(operation, name, "sequences end to end", "a nested tensor with holes", "Pass x.contiguous().")


def _ragged_dim(x: Tensor) -> int:
    return int(x._ragged_idx)  # type: ignore[attr-defined]


def _offsets(x: Tensor) -> Tensor:
    """Where each sequence begins, and the end."""
    offsets: Tensor = x.offsets()  # type: ignore[attr-defined]
    return offsets


def _same_lengths(x: Tensor, y: Tensor) -> bool:
    # Mostly it is one object, and nothing has to be compared (which a compiler could not).
    return _offsets(x) is _offsets(y) or torch.equal(_offsets(x), _offsets(y))


def _nest(values: Tensor, like: Tensor) -> Tensor:
    """With the very offsets of `like`: torch adds two nested tensors only if these are one object."""
    return torch.nested.nested_tensor_from_jagged(values, offsets=_offsets(like), jagged_dim=_ragged_dim(like))
