"""Cross-entropy with hard or soft labels, classes last."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


def l1_penalty(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of |theta_i| over all elements of all parameters, a 0-dim tensor: add ``lambda * l1_penalty(...)`` to a loss.

    Tensors of 16 bits are summed in float32. Source: the L1 penalty of the seed document on overfitting. Raises
    ValueError where there are no parameters.
    """
    return _penalty("l1_penalty", parameters, lambda theta: theta.abs().sum())


def l2_penalty(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of theta_i^2, not halved: its gradient is 2 theta, so ``weight_decay=2 * lambda`` of SGD is the same.

    Otherwise as ``l1_penalty``.
    """
    return _penalty("l2_penalty", parameters, lambda theta: theta.square().sum())


def _penalty(operation: str, parameters: Iterable[Tensor], of_one: Callable[[Tensor], Tensor]) -> Tensor:
    terms = [of_one(p.float() if p.dtype in (torch.bfloat16, torch.float16) else p) for p in parameters]
    if not terms:
        refuse(operation, "parameters", "at least one tensor", "none")
    return torch.stack([term.to(terms[0].device, terms[0].dtype) for term in terms]).sum()
