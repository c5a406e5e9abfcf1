"""The training step outside the matrix multiplies, fused, on CPU and CUDA, from one torch-free wheel.

`fusestep.ops` works on plain arrays and needs NumPy alone. `fusestep.optim`, `fusestep.nn` and `fusestep.Trainer` are
for PyTorch, which is imported when they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusestep import _main_interpreter as _main_interpreter  # first: it refuses where the core would wait for ever
from fusestep import ops
from fusestep._core import __version__, get_num_threads, info, set_num_threads

if TYPE_CHECKING:
    from fusestep.training import TrainConfig, Trainer

__all__ = ["TrainConfig", "Trainer", "__version__", "get_num_threads", "info", "ops", "set_num_threads"]


def __getattr__(name: str) -> Any:
    # Lazily: the trainer imports torch, and `import fusestep` needs NumPy alone.
    if name in ("Trainer", "TrainConfig"):
        from fusestep import training

        return getattr(training, name)
    raise AttributeError(f"module 'fusestep' has no attribute {name!r}")
