"""The types of attention's options, for type checkers: what `functional.attention` takes by keyword."""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor

Causal = Literal["top_left", "bottom_right"]
Window = tuple[int | None, int | None]


class AttentionOptions(TypedDict, total=False):
    """All but ``return_lse``, on which the type of the result depends. `functional.attention` says what they mean."""

    mask: Tensor | None
    causal: bool | Causal
    window: Window | None
    key_lengths: Tensor | None
    alibi_slopes: Tensor | None
    softcap: float | None
    scale: float | None
    dropout_p: float
    seed: int | Tensor | None
    offset: int
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
