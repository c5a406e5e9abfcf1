"""`fusestep bench`: our kernels against what is installed, as ratios and as a share of the memory floor."""

from __future__ import annotations

from .command import main

__all__ = ["main"]
