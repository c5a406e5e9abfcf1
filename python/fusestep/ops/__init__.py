"""Fused operations on plain arrays: NumPy, PyTorch, and whatever else speaks DLPack; without copies.

The optimizers are `adamw_`, `adam_`, `rmsprop_`, `adagrad_` and `sgd_`. Each makes one step over lists of arrays, in
place::

    norm = ops.adamw_([p], [g], [exp_avg], [exp_avg_sq], step=1, lr=1e-3, max_grad_norm=1.0)

Attention, the masked softmax and dropout return new arrays of the kind that came in, or write to those given as `out`.
They take no gradient: each has a function for its backward pass::

    out, lse = ops.attention(query, key, value, causal=True, dropout_p=0.1, seed=17)
    grads = ops.attention_backward(grad_out, query, key, value, out, lse, causal=True, dropout_p=0.1, seed=17)

Which elements dropout drops is a function of the seed, the offset and the position: the same on every device, in any
layout, for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import _optimizers
from ._attention import attention, attention_backward
from ._cross_entropy import cross_entropy
from ._dropout import dropout, dropout_add
from ._eight_bit import dequantize_8bit, quantize_8bit
from ._masked_softmax import masked_softmax, masked_softmax_backward
from ._optimizers import CLIPPING, clip_grad_norm_, clip_grad_value_, grad_norm

__all__ = [
    "CLIPPING",
    "attention",
    "attention_backward",
    "clip_grad_norm_",
    "clip_grad_value_",
    "cross_entropy",
    "dequantize_8bit",
    "dropout",
    "dropout_add",
    "grad_norm",
    "masked_softmax",
    "masked_softmax_backward",
    "quantize_8bit",
]

globals().update(_optimizers.STEPS)
__all__ += list(_optimizers.STEPS)

if TYPE_CHECKING:  # for type checkers, which do not see the optimizers

    def __getattr__(name: str) -> Callable[..., float | None]: ...
