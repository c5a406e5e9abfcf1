"""Cross-entropy over class indices: label smoothing as in Szegedy et al. 2016 (torch's form), z-loss as in PaLM."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array, widen


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array, Array]:
    """(loss, lse, gradient of the logits) of logits (N, V) and labels (N,).

    With p = softmax(x): loss = (1 - s) (lse - x[y]) + s (lse - mean(x)) + z lse^2. Of ignored rows all three are 0.
    """
    x, y = widen(logits), np.asarray(labels)
    counted = y != ignore_index
    label = np.where(counted, y, 0)[:, None]
    highest = x.max(axis=1, keepdims=True)
    power = np.exp(x - highest)
    total = power.sum(axis=1, keepdims=True)
    lse = (highest + np.log(total))[:, 0]
    one_hot = np.arange(x.shape[1]) == label
    loss = (1 - label_smoothing) * (lse - np.take_along_axis(x, label, axis=1)[:, 0]) + z_loss * lse**2
    if label_smoothing:
        loss = loss + label_smoothing * (lse - x.mean(axis=1))
    share = (1 - label_smoothing) * one_hot + label_smoothing / x.shape[1]
    grad = power / total * (1 + 2 * z_loss * lse[:, None]) - share
    loss, lse = np.where(counted, loss, 0.0), np.where(counted, lse, 0.0)
    grad = np.where(counted[:, None], grad, 0.0)
    if reduction == "none":
        return loss, lse, grad
    count = counted.sum() if reduction == "mean" else 1
    return np.asarray(loss.sum() / count if count else np.nan), lse, grad / max(count, 1)
