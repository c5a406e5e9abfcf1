"""An update's metrics under the names that dashboards know."""

from __future__ import annotations

from fusestep.training.metrics import StepMetrics


class Scalars:
    """``Scalars()(metrics)``: what is known of an update, by name.

    "train/loss", "train/learning_rate", "train/grad_norm" (before clipping), "train/tokens_per_second" (since the
    update before, evaluations included; from the second update on) and, after an evaluation, "eval/loss".
    """

    def __init__(self) -> None:
        self._before: StepMetrics | None = None

    def __call__(self, metrics: StepMetrics) -> dict[str, float]:
        before, self._before = self._before, metrics
        scalars = {
            "train/loss": metrics.loss,
            "train/learning_rate": metrics.lr,
            "train/grad_norm": metrics.grad_norm,
            "eval/loss": metrics.val_loss,
        }
        if before is not None and metrics.seconds > before.seconds:
            speed = (metrics.tokens - before.tokens) / (metrics.seconds - before.seconds)
            scalars["train/tokens_per_second"] = speed
        return {name: value for name, value in scalars.items() if value is not None}
