"""Cross-entropy as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusestep._refusal import check_number

from . import functional as F


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` computed by ``fusestep.nn.functional.cross_entropy``.

    Takes torch's arguments and ``z_loss`` (default 0): this times the squared log-sum-exp of a row is added to
    its loss.
    Raises what the function raises; TypeError or ValueError for a z_loss below 0.
    """

    def __init__(self, *args: Any, z_loss: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_number("CrossEntropyLoss", "z_loss", z_loss, 0.0)
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` and class indices or probabilities ``target``, as the function has them."""
        return F.cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing, z_loss=self.z_loss
        )
