"""Cross-entropy with hard or soft labels, classes last; penalties of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

import fusestep.nn.functional as F
from fusestep._refusal import check_number, refuse


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


def l1_penalty(parameters: Tensor | Iterable[Tensor], strength: float) -> Tensor:
    """strength * sum |w| over all elements: a 0-dim tensor to add to the loss. Its gradient is strength * sign(w).

    It pulls weights to exactly zero. parameters: as ``clip_grad_norm_`` takes them: a tensor, or any number of them;
    leave out biases and norms, which need not be small. strength: >= 0. Sums of 16-bit weights are in float32.
    Raises TypeError or ValueError for another strength, ValueError where there is no parameter.
    """
    return _penalty("l1_penalty", parameters, strength, torch.abs)


def l2_penalty(parameters: Tensor | Iterable[Tensor], strength: float) -> Tensor:
    """strength * sum w^2 over all elements: a 0-dim tensor to add to the loss. Its gradient is 2 * strength * w.

    With SGD it equals ``weight_decay=2 * strength``, which costs nothing: prefer it. With Adam the two differ: the
    penalty passes through the moments (``Adam(weight_decay=)``), AdamW's decay does not (Loshchilov and Hutter,
    arXiv:1711.05101). Arguments and errors are those of ``l1_penalty``.
    """
    return _penalty("l2_penalty", parameters, strength, torch.square)


def _penalty(
    name: str, parameters: Tensor | Iterable[Tensor], strength: float, each: Callable[[Tensor], Tensor]
) -> Tensor:
    check_number(name, "strength", strength, 0.0)
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not tensors:
        refuse(name, "parameters", "at least one tensor", "none")
    wide = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)
    return strength * torch.stack([each(t).sum() for t in wide]).sum()
