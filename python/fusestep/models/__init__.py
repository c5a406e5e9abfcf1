"""Models to train: a small byte-level GPT."""

from fusestep.models.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
