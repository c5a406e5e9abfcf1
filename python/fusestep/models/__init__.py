"""Models to train: a small byte-level GPT."""

from fusestep import _torch as _torch
from fusestep.models.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
