"""Cross-entropy on drawn logits, held against the float64 reference."""

from __future__ import annotations

import numpy as np
import problems
import tolerances
from attention_cases import round_to
from attention_runs import wide
from fusestep import ops, reference


def draw(rows, classes, dtype="float32", spread=3.0):
    rng = np.random.default_rng(5)
    logits = round_to(spread * rng.standard_normal((rows, classes)), dtype)
    return logits, rng.integers(0, classes, rows)


def assert_as_reference(logits, labels, dtype, layout="contiguous", **options):
    array = problems.array(logits, dtype, layout=layout)
    grad = problems.array(np.zeros(logits.shape), dtype)
    loss, lse = ops.cross_entropy(array, labels, grad=grad, **options)
    assert_within_bounds((loss, lse, grad), logits, labels, dtype, **options)


def assert_within_bounds(results, logits, labels, dtype, **options):
    """(loss, lse, grad) against the reference; grad may be None."""
    loss, lse, grad = results
    want_loss, want_lse, want_grad = reference.cross_entropy(logits, labels, **options)
    u = tolerances.U["float64" if dtype == "float64" else "float32"]
    smoothing, z_loss = options.get("label_smoothing", 0), options.get("z_loss", 0)
    # Of an exponential: the three roundings of its argument, at most as large as the spread, and the fit; of a sum: 32
    # terms a lane of a chunk and 5 joins, then doubles.
    spread = logits.max() - logits.min()
    terms = 1024 // 32 + 5
    of_sum = (3 * spread + tolerances.EXP2 + terms + 2) * u * tolerances.SLACK
    slope = 1 + 2 * z_loss * np.abs(want_lse)  # how the loss moves with lse
    per_row = of_sum * slope + smoothing * terms * u * np.abs(logits).mean(axis=1)
    counted = max(1, int((labels != options.get("ignore_index", -100)).sum()))
    reduction = options.get("reduction", "mean")
    whole = {"none": per_row, "sum": per_row.sum(), "mean": per_row.sum() / counted}[reduction]
    assert np.all(np.abs(wide(loss) - want_loss) <= whole + 2 * u * np.abs(want_loss))
    assert np.all(np.abs(wide(lse) - want_lse) <= of_sum + 2 * u * np.abs(want_lse))
    if grad is None:
        return
    # The gradient is weight - share: one exponential, its factor (from lse and the sum), an fma, and the label's share.
    scale = 1 / counted if reduction == "mean" else 1.0
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    weight *= scale / weight.sum(axis=1, keepdims=True)
    share = scale * ((np.arange(logits.shape[1]) == labels[:, None]) + smoothing / logits.shape[1])
    bound = (2 * of_sum + 4 * u) * weight * slope[:, None] + 2 * z_loss * of_sum * weight + 4 * u * share
    bound += tolerances.STORED[dtype] * (np.abs(want_grad) + bound) + tolerances.LEAST_STORED[dtype]
    assert np.all(np.abs(wide(grad) - want_grad) <= bound)
