"""The training loop and what it leaves behind: metrics, curves, checkpoints."""

from fusestep import _torch as _torch
from fusestep.training.checkpoint import CheckpointError
from fusestep.training.config import PRECISIONS, TrainConfig
from fusestep.training.loop import Trainer, TrainingDiverged
from fusestep.training.metrics import StepMetrics, read_metrics
from fusestep.training.plots import plot_curves

__all__ = [
    "PRECISIONS",
    "CheckpointError",
    "StepMetrics",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "plot_curves",
    "read_metrics",
]
