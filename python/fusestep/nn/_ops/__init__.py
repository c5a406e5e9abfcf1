"""The operators of the torch library "fusestep"."""

from .dropout import dropout, dropout_, dropout_add
from .library import check_seed, draw_seed
from .softmax import attention, masked_softmax

__all__ = ["attention", "check_seed", "draw_seed", "dropout", "dropout_", "dropout_add", "masked_softmax"]
