"""Dropout as a module."""

from __future__ import annotations

from torch import Tensor, nn

from fusestep._refusal import check_probability

from . import functional


class Dropout(nn.Module):
    """`torch.nn.Dropout` by ``fusestep.nn.functional.dropout``: nothing is kept for the backward pass.

    Args:
        p: probability with which an element is zeroed in training, in [0, 1].
        inplace: change the input itself.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        check_probability("Dropout", "p", p)
        self.p = p
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
