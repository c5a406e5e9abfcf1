"""What goes around PyTorch modules."""

from . import init, utils

__all__ = ["init", "utils"]
