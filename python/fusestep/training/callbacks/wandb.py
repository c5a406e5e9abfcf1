"""A run in Weights & Biases."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from fusestep.training.callbacks.scalars import Scalars
from fusestep.training.metrics import StepMetrics
from fusestep.training.processes import Processes


class WandbCallback:
    """Sends the metrics of every update to Weights & Biases.

    project: of W&B.
    options: for ``wandb.init``: name, config, mode="offline", dir; to go on with a run, its id and resume="allow".
        Steps behind the checkpoint, which a resumed run makes again, are there already: W&B keeps the first ones.

    The names are those of ``TensorBoardCallback``. The run of W&B begins when ``fit`` does; it ends with it, as failed
    where an error ended it. Of several processes the first one sends.
    Raises ImportError, with the remedy, without wandb.
    """

    def __init__(self, project: str, **options: Any) -> None:
        try:
            import wandb
        except ImportError as missing:
            raise ImportError(f"WandbCallback needs wandb: {missing}. Try: pip install 'fusestep[wandb]'") from missing
        self._wandb = wandb
        self._options = {"project": project, **options}
        self._run: Any = None

    def __enter__(self) -> WandbCallback:
        self._scalars = Scalars()
        if Processes().first:
            self._run = self._wandb.init(**self._options)
        return self

    def __call__(self, metrics: StepMetrics) -> None:
        if self._run is not None:
            self._run.log(self._scalars(metrics), step=metrics.step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)
            self._run = None
