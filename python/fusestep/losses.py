"""Cross-entropy with hard or soft labels, classes last."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusestep._refusal import refuse


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all observations of -sum_i y_i log softmax(logits)_i, in nats: a 0-dim tensor.

    Logits of 16 bits are computed with in float32, and so is the result: the mean of thousands of losses has no use for
    the two or three digits of bfloat16.

    logits: (..., C), floating point, any number of leading dimensions.
    targets: hard labels (...) of int64, each class either is the one or is not; or soft labels (..., C) of the
        logits' kind, each row a probability distribution over the classes.
    Raises ValueError when the shapes do not fit, TypeError for targets of another dtype.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    classes = logits.shape[-1]
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            refuse(
                "cross_entropy",
                "targets",
                f"soft labels of shape {tuple(logits.shape)}",
                f"{tuple(targets.shape)}",
            )
        return F.cross_entropy(logits.reshape(-1, classes), targets.to(logits.dtype).reshape(-1, classes))
    if targets.dtype.is_complex or targets.element_size() != 8:
        refuse(
            "cross_entropy",
            "targets",
            "int64 hard labels or floating soft labels",
            str(targets.dtype),
            error=TypeError,
        )
    if targets.shape != logits.shape[:-1]:
        refuse(
            "cross_entropy",
            "targets",
            f"hard labels of shape {tuple(logits.shape[:-1])}",
            f"{tuple(targets.shape)}",
        )
    return F.cross_entropy(logits.reshape(-1, classes), targets.reshape(-1))
