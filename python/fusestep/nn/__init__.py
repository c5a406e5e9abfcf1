"""Attention, dropout and cross-entropy for PyTorch, and what goes around modules."""

from fusestep import _torch as _torch

from . import functional, init, utils
from .cross_entropy import CrossEntropyLoss
from .dropout import Dropout
from .multihead_attention import MultiheadAttention

__all__ = ["CrossEntropyLoss", "Dropout", "MultiheadAttention", "functional", "init", "utils"]
