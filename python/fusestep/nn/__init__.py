"""Attention and dropout for PyTorch, and what goes around modules."""

from fusestep import _torch as _torch

from . import functional, init, utils
from .dropout import Dropout
from .multihead_attention import MultiheadAttention

__all__ = ["Dropout", "MultiheadAttention", "functional", "init", "utils"]
