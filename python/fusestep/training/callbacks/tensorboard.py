"""A run in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fusestep.training.callbacks.scalars import Scalars
from fusestep.training.metrics import StepMetrics
from fusestep.training.processes import Processes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10  # what a process that is killed may lose


class TensorBoardCallback:
    """Writes the metrics of every update as event files: ``tensorboard --logdir log_dir``.

    log_dir: the directory of this run; it is made. When a run is resumed, the steps behind its checkpoint, which are
        made again, replace the old ones.

    The names: "train/loss", "train/learning_rate", "train/grad_norm" (before clipping), "train/tokens_per_second"
    (since the update before, evaluations included) and "eval/loss". Of several processes the first one writes.
    Raises ImportError, with the remedy, without tensorboard.
    """

    def __init__(self, log_dir: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as missing:
            raise ImportError(
                f"TensorBoardCallback needs tensorboard: {missing}. Try: pip install 'fusestep[tensorboard]'"
            ) from missing
        self.log_dir = Path(log_dir)
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoardCallback:
        return self

    def __call__(self, metrics: StepMetrics) -> None:
        if not Processes().first:
            return
        if self._writer is None:
            self._scalars = Scalars()
            self._writer = self._make_writer(str(self.log_dir), purge_step=metrics.step, flush_secs=FLUSH_SECONDS)
        for name, value in self._scalars(metrics).items():
            self._writer.add_scalar(name, value, metrics.step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
