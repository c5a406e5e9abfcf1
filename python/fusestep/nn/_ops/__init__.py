"""The operators of the torch library "fusestep"."""

from .cross_entropy import cross_entropy
from .dropout import dropout, dropout_, dropout_add
from .library import check_seed, draw_seed, runs_eagerly
from .softmax import attention, masked_softmax

__all__ = [
    "attention",
    "check_seed",
    "cross_entropy",
    "draw_seed",
    "dropout",
    "dropout_",
    "dropout_add",
    "masked_softmax",
    "runs_eagerly",
]
