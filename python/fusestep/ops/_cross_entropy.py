"""Cross-entropy over class indices, with its gradient."""

from __future__ import annotations

from typing import Any

from fusestep import _core

from ._arrays import bump_versions, empty, shape_of


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    grad: Any = None,
) -> tuple[Any, Any]:
    """The loss of class indices, and in the same pass its gradient: `fusestep.reference.cross_entropy` is the rule.

    Args:
        logits: (N, V), of float32, float64, bfloat16 or float16, in any layout, in CPU memory.
        labels: (N,) int64: a class from 0 to V - 1, or ignore_index.
        ignore_index: rows with this label have loss, log-sum-exp and gradient 0, and do not count in the mean.
        label_smoothing: in [0, 1], as torch's: this share of each label is spread over all classes.
        z_loss: this times the square of the row's log-sum-exp is added to its loss (PaLM, 2022, section 5).
        reduction: "mean" over the rows that are not ignored (NaN where there are none), "sum" or "none".
        grad: where to write the gradient of the reduced loss (of each row's with "none"): an array like logits, or
            logits itself, which it then overwrites. None: no gradient.

    Returns:
        (loss, lse): the loss, () or (N,) without a reduction, and the natural log of the sum of exponentials of each
        row; both float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument that cannot be taken. Nothing has been written then.
    """
    rows = shape_of(logits)[:1]
    of_rows = isinstance(reduction, str) and reduction == "none"
    loss = empty("cross_entropy", "logits", rows if of_rows else (), logits, for_sums=True)
    lse = empty("cross_entropy", "logits", rows, logits, for_sums=True)
    _core.cross_entropy(
        "cross_entropy", logits, labels, loss, lse, grad, ignore_index, label_smoothing, z_loss, reduction
    )
    if grad is not None:
        bump_versions([grad])
    return loss, lse
