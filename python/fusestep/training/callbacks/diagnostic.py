"""Any diagnostic, again and again over a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fusestep._refusal import check_integer
from fusestep.training.metrics import StepMetrics
from fusestep.training.processes import Processes
from fusestep.training.rundir import RunDir

if TYPE_CHECKING:
    from fusestep.diagnostics import Report


class DiagnosticCallback:
    """Makes a diagnostic every so many updates, and keeps what it found in the run's directory.

    diagnose: makes it, ``lambda: dead_units(model, inputs)``. Diagnostics leave the model as they found it.
    run_dir: the run's directory, that of ``TrainConfig``.
    every: updates between two, >= 1.
    name: of the files, ``diagnostics/NAME-00000400.json`` and ``.png`` after update 400; default: that of the report's
        class.

    Of several processes the first one writes, and each has to have this callback, as a sharded model is looked at by
    all. Raises TypeError or ValueError for ``every`` outside its range; what the diagnostic raises ends the run.
    """

    def __init__(
        self, diagnose: Callable[[], Report], run_dir: str | Path, *, every: int, name: str | None = None
    ) -> None:
        check_integer("DiagnosticCallback", "every", every, 1)
        self.folder = RunDir(Path(run_dir)).diagnostics
        self._diagnose, self._every, self._name = diagnose, every, name

    def __call__(self, metrics: StepMetrics) -> None:
        if metrics.step % self._every:
            return
        report = self._diagnose()
        if not Processes().first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self._name or type(report).__name__}-{metrics.step:08d}.json"
        path.write_text(report.to_json() + "\n", encoding="utf-8")
        report.plot(path.with_suffix(".png"))
