"""The gradient's health, layer by layer, over a run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from torch import nn

from fusestep._refusal import check_integer, check_number
from fusestep.diagnostics import gradient_health
from fusestep.diagnostics.health import EXPLODING
from fusestep.training.metrics import MetricsFile, StepMetrics
from fusestep.training.processes import Processes
from fusestep.training.rundir import RunDir


class HealthCallback:
    """Appends ``diagnostics.gradient_health`` to ``health.jsonl`` of the run, which ``fusestep report`` shows.

    model: the one that is trained.
    run_dir: the run's directory, that of ``TrainConfig``.
    every: updates between two records, >= 1; the first update has one, too.
    vanishing, exploding: the limits of ``gradient_health``.

    A line: ``{"step": 1, "layers": {"head": {"grad_norm": 1.5, "grad_max": 0.2, "param_norm": 9.0, "flag": "ok"}}}``,
    null for what is not finite. The gradients are those that the update has used, the parameters those after it.
    torch's clipping has scaled the gradients by then; fusestep's, which is part of the update, has not unless the
    optimizer has ``rewrite_grads``. Of several processes the first one writes, and each has to have this callback, as a
    sharded model is looked at by all. A resumed run replaces what it makes again.
    Raises TypeError or ValueError for an argument outside its range.
    """

    def __init__(
        self,
        model: nn.Module,
        run_dir: str | Path,
        *,
        every: int = 100,
        vanishing: float | None = None,
        exploding: float = EXPLODING,
    ) -> None:
        check_integer("HealthCallback", "every", every, 1)
        for name, limit in (("vanishing", vanishing), ("exploding", exploding)):
            if limit is not None:
                check_number("HealthCallback", name, limit, 0.0)
        self.path = RunDir(Path(run_dir)).health
        self._model, self._every = model, every
        self._vanishing, self._exploding = vanishing, exploding
        self._file: MetricsFile | None = None

    def __enter__(self) -> HealthCallback:
        return self

    def __call__(self, metrics: StepMetrics) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = MetricsFile(self.path if Processes().first else None, metrics.step - 1)
        if metrics.step != 1 and metrics.step % self._every:
            return
        report = gradient_health(self._model, vanishing=self._vanishing, exploding=self._exploding)
        layers = {
            layer.name: {
                "grad_norm": layer.grad_norm,
                "grad_max": layer.grad_max,
                "param_norm": layer.param_norm,
                "flag": layer.flag,
            }
            for layer in report
        }
        self._file.write({"step": metrics.step, "layers": layers})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.__exit__(kind, error, trace)
            self._file = None
