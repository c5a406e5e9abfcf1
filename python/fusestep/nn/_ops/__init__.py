"""The operators of the torch library "fusestep"."""

from .cross_entropy import by_torch as cross_entropy_by_torch
from .cross_entropy import cross_entropy
from .cross_entropy import has_kernel as has_cross_entropy_kernel
from .dropout import dropout, dropout_, dropout_add
from .library import check_seed, draw_seed, runs_eagerly
from .linear_cross_entropy import linear_cross_entropy
from .softmax import attention, masked_softmax

__all__ = [
    "attention",
    "check_seed",
    "cross_entropy",
    "cross_entropy_by_torch",
    "draw_seed",
    "dropout",
    "dropout_",
    "dropout_add",
    "has_cross_entropy_kernel",
    "linear_cross_entropy",
    "masked_softmax",
    "runs_eagerly",
]
