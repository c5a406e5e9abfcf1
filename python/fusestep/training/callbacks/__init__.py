"""What a ``Trainer`` can be given as ``callbacks``, beside functions of one's own: they show a run elsewhere."""

from fusestep.training.callbacks.diagnostic import DiagnosticCallback
from fusestep.training.callbacks.health import HealthCallback
from fusestep.training.callbacks.tensorboard import TensorBoardCallback
from fusestep.training.callbacks.wandb import WandbCallback

__all__ = ["DiagnosticCallback", "HealthCallback", "TensorBoardCallback", "WandbCallback"]
